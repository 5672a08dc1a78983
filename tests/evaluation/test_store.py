"""Shards on disk: resuming, merging, and what is refused."""

import json

import pyarrow as pa
import pytest

from trl_perception.evaluation.store import PredictionStore, schema

COLUMNS = schema(["accuracy"], [])


def record(row):
    empty = dict.fromkeys(("id", "prompt", "problem_type", "solution"), str(row))
    lists = {"media": [], "completions": ["x"], "tokens": [1], "cut": [False]}
    return {**empty, **lists, "row": row, "scores": {"accuracy": [1.0]}, "pass_rate": 1.0, "left_out": ""}


def test_batches_come_back_in_row_order_and_only_missing_ones_are_pending(tmp_path):
    store = PredictionStore(tmp_path / "run", 3, COLUMNS)
    store.claim({"model": "a"})
    assert store.pending() == [0, 1, 2]
    store.write(1, [record(4), record(1)])
    again = PredictionStore(tmp_path / "run", 3, COLUMNS)
    again.claim({"model": "a"})
    assert again.pending() == [0, 2]
    again.write(0, [record(3)])
    again.write(2, [record(0), record(2)])
    assert again.merge()["row"].to_pylist() == [0, 1, 2, 3, 4]
    assert again.pending() == []
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["predictions.parquet", "settings.json"]
    assert again.merge().num_rows == 5  # a second time reads the file


def test_a_batch_cut_off_in_writing_is_pending(tmp_path, monkeypatch):
    store = PredictionStore(tmp_path / "run", 1, COLUMNS)
    store.claim({})

    def full_disk(table, file):
        file.write_bytes(b"PAR1 half of it")
        raise OSError("no space left")

    monkeypatch.setattr("pyarrow.parquet.write_table", full_disk)
    with pytest.raises(OSError, match="no space left"):
        store.write(0, [record(0)])
    assert store.pending() == [0]


def test_other_settings_are_refused_by_name(tmp_path):
    PredictionStore(tmp_path / "run", 1, COLUMNS).claim({"model": "a", "samples": 1, "limit": None})
    with pytest.raises(ValueError, match=r"samples: 1 there, 8 now; seed: None there, 3 now\).*Set output to another"):
        PredictionStore(tmp_path / "run", 1, COLUMNS).claim({"model": "a", "samples": 8, "limit": None, "seed": 3})
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["samples"] == 1


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="holds something that is no evaluation"):
        PredictionStore(tmp_path, 1, COLUMNS).claim({})
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_columns_of_by_are_there_once():
    names = schema(["accuracy"], ["family", "problem_type"]).names
    assert names.count("problem_type") == 1
    assert "family" in names
    assert schema(["a", "b"], []).field("scores").type == pa.struct(
        [("a", pa.list_(pa.float64())), ("b", pa.list_(pa.float64()))]
    )
