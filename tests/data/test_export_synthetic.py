"""The synthetic clips in Video-R1's layout load as the original rows."""

import json

import pytest

from trl_perception.data import make_synthetic_dataset, reference_completion
from trl_perception.data.adapters import ADAPTERS, Source
from trl_perception.data.export_synthetic import FAMILIES, LAYOUTS, export_synthetic, main


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_adapter_gives_the_synthetic_rows_back(tmp_path, layout):
    file = export_synthetic(tmp_path / "export", size=15, layout=layout, medium="mixed", seed=3)
    direct = make_synthetic_dataset(tmp_path / "export" / "clips", size=15, families=FAMILIES, medium="mixed", seed=3)
    adapter, source = ADAPTERS[layout], Source(tmp_path / "export")
    assert adapter.files(source) == [file]
    rows = [adapter.row(record, source) for record in adapter.read(file).read(0)]
    for row, expected in zip(rows, direct, strict=True):
        for column in ("id", "videos", "images", "solution", "options"):
            assert row[column] == expected[column], column
        scored_by_rouge = {"free-form": "free text"}  # what Video-R1 calls free-form
        assert row["problem_type"] == scored_by_rouge.get(expected["problem_type"], expected["problem_type"])
        blocks = [{k: v for k, v in block.items() if v is not None} for block in expected["prompt"][0]["content"]]
        assert row["prompt"] == [{"role": "user", "content": blocks}]
        if adapter.warm_up:
            text = row["completion"][0]["content"][0]["text"]
            assert text.replace("</think>\n<answer>", "</think><answer>") == reference_completion(expected)
    assert {row["problem_type"] for row in rows} == {"multiple choice", "numerical", "free text"}


def test_the_file_has_the_published_fields(tmp_path):
    main(["--output", str(tmp_path), "--size", "5", "--split", "test"])
    records = json.loads((tmp_path / "Video-R1-260k.json").read_text())
    fields = {"problem_id", "problem", "data_type", "problem_type", "options", "process", "solution", "path"}
    assert all(fields <= set(record) for record in records)
    assert all((tmp_path / record["path"]).is_file() and record["path"].startswith("./") for record in records)
    assert all("\n" not in record["problem"] and record["process"] == "" for record in records)
    assert all(record["problem_id"].startswith("test-") for record in records)


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="layout is 'video_r1'; one of video-r1, video-r1-cot"):
        export_synthetic(tmp_path, size=1, layout="video_r1")
