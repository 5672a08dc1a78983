"""Datasets by name: local files with media beside them, folders, synthetic; and what is refused."""

import json

import pytest
from datasets import Dataset, DatasetDict, Features, List, Value, Video

from trl_perception.data.columns import undecoded_videos
from trl_perception.data.load import load_rows


@pytest.fixture
def rows(tmp_path):
    """A JSONL file whose media are given by paths from its folder."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.mp4").write_bytes(b"x")
    row = {"prompt": "?", "videos": ["clips/a.mp4", "http://x/b.mp4"], "image": None, "solution": "clips/a.mp4"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "saved", "saved dict"])
def test_local_rows_find_their_media(rows, kind, tmp_path):
    dataset, path = Dataset.from_json(str(rows)), rows
    if kind == "json":
        path = tmp_path / "rows.json"
        path.write_text(json.dumps([json.loads(rows.read_text())]))
    elif kind == "parquet":
        path = tmp_path / "rows.parquet"
        dataset.to_parquet(str(path))
    elif kind == "saved":
        dataset.save_to_disk(str(tmp_path))
        path = tmp_path
    elif kind == "saved dict":
        DatasetDict(train=dataset).save_to_disk(str(tmp_path))
        path = tmp_path
    (row,) = load_rows(str(path), "train")
    assert row["videos"] == [str(tmp_path / "clips" / "a.mp4"), "http://x/b.mp4"]
    assert row["solution"] == "clips/a.mp4"  # text is no path


def test_synthetic_rows_are_made_once_and_splits_differ(tmp_path):
    options = {"size": 4, "output_dir": str(tmp_path)}
    train = load_rows("synthetic", "train", synthetic=options)
    again = load_rows("synthetic", "train", synthetic=options)
    test = load_rows("synthetic", "test", synthetic=options)
    assert train.to_list() == again.to_list()
    assert {row["id"] for row in train}.isdisjoint(row["id"] for row in test)


def test_what_does_not_exist_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl does not exist"):
        load_rows("./nowhere.jsonl", "train")
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(ValueError, match=r"is a \.csv file; one of \.json, \.jsonl, \.parquet"):
        load_rows(str(tmp_path / "rows.csv"), "train")
    DatasetDict(train=Dataset.from_list([{"prompt": "?"}])).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(ValueError, match=r"has splits \['train'\]; 'test' was asked for"):
        load_rows(str(tmp_path / "saved"), "test")


def test_video_columns_lose_their_decoder_and_nothing_else():
    features = Features({"video": Video(), "videos": List(Video()), "id": Value("int64")})
    raw = {"video": None, "videos": [{"path": "a.mp4", "bytes": None}], "id": 7}
    dataset = undecoded_videos(Dataset.from_list([raw], features=features))
    assert dataset[0] == raw
    plain = Dataset.from_list([{"prompt": "?"}])
    assert undecoded_videos(plain) is plain
    assert undecoded_videos(None) is None
    both = undecoded_videos({"a": plain, "b": Dataset.from_list([raw], features=features)})
    assert both["b"][0] == raw
