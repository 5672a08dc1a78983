"""Datasets by name: local files with media beside them, folders, synthetic data; and what is refused."""

import json
import os

import pytest
from datasets import Dataset, DatasetDict, Features, List, Value, Video

from trl_perception.data.columns import undecoded_videos
from trl_perception.data.load import load_rows
from trl_perception.media import media_columns


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


def test_media_in_messages_and_frames_are_found_beside_the_file(tmp_path):
    for name in ("a.mp4", "1.png", "2.png"):
        (tmp_path / name).write_bytes(b"x")
    content = [
        {"type": "video", "video": "a.mp4"},
        {"type": "image", "url": "1.png"},
        {"type": "text", "text": "a.mp4"},
    ]
    row = {"prompt": [{"role": "user", "content": content}], "videos": [["1.png", "2.png"]]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (found,) = load_rows(str(tmp_path / "rows.jsonl"), "train")
    assert found["videos"] == [[str(tmp_path / "1.png"), str(tmp_path / "2.png")]]
    video, image, text = found["prompt"][0]["content"]
    assert (video["video"], image["url"]) == (str(tmp_path / "a.mp4"), str(tmp_path / "1.png"))
    assert text["text"] == "a.mp4"  # text is no path


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("template", ["none", "think_answer"])
def test_rows_are_mapped_once(rows, kind, template, tmp_path, monkeypatch, caplog):
    stored = rows
    if kind == "parquet":
        stored = tmp_path / "rows.parquet"
        Dataset.from_json(str(rows)).to_parquet(str(stored))

    def load():
        return load_rows(str(stored), "train", prompt_template=template)

    def again(*args):
        raise AssertionError("the rows that were cached are mapped again")

    first = load()
    monkeypatch.setattr("trl_perception.data.load._absolute", again)
    assert load().cache_files == first.cache_files
    assert load()[:] == first[:]
    assert "couldn't be hashed" not in caplog.text
    stored = stored.rename(tmp_path / "clips" / stored.name)  # the same rows of another folder are others
    with pytest.raises(AssertionError, match="mapped again"):
        load()


def test_media_that_come_later_are_found(rows, tmp_path):
    """The cache does not depend on which files exist."""
    clip = tmp_path / "clips" / "a.mp4"
    clip.unlink()
    for _ in range(2):
        (row,) = load_rows(str(rows), "train")
        assert row["videos"][0] == str(clip)
        clip.write_bytes(b"x")


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("a.mp4", "{folder}/a.mp4"),
        ("./a.mp4", "{folder}/a.mp4"),
        ("concat:a.mp4", "{folder}/concat:a.mp4"),
        ("~/a.mp4", "{home}/a.mp4"),
        ("/a.mp4", "/a.mp4"),
        ("file:///a.mp4", "file:///a.mp4"),
        ("https://x/a.mp4", "https://x/a.mp4"),
        ("data:image/png;base64," + "A" * 5000, "data:image/png;base64," + "A" * 5000),  # longer than a path can be
        ("", ""),
    ],
)
def test_relative_paths_count_from_the_file(given, found, tmp_path):
    row = {"prompt": "?", "images": [given], "image": given}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    (row,) = load_rows(str(tmp_path / "rows.jsonl"), "train")
    found = found.replace("{folder}", str(tmp_path)).replace("{home}", os.path.expanduser("~"))
    assert (row["images"], row["image"]) == ([found], found)


def test_a_folder_has_a_file_for_each_split_and_media_beside(rows, tmp_path):
    """`datasets` alone takes such a folder for one of videos."""
    for name in ("b.mp4", "c.mp4"):
        (tmp_path / "clips" / name).write_bytes(b"x")
    rows.rename(tmp_path / "train.jsonl")
    (tmp_path / "test.jsonl").write_text('{"prompt": "!", "videos": ["clips/b.mp4"]}\n')
    for split, prompt, clip in (("train", "?", "a.mp4"), ("test", "!", "b.mp4")):
        (row,) = load_rows(str(tmp_path), split)
        assert (row["prompt"], row["videos"][0]) == (prompt, str(tmp_path / "clips" / clip))
    (tmp_path / "test.json").write_text("[]")
    with pytest.raises(ValueError, match=r"has test\.json and test\.jsonl\. Keep one"):
        load_rows(str(tmp_path), "test")


def test_a_folder_that_gives_no_rows_names_the_file_wanted(tmp_path):
    (tmp_path / "notes.txt.part").touch()
    with pytest.raises(
        ValueError, match=r"\(found: notes\.txt\.part\) gives no split 'train' .*Put train\.jsonl into it"
    ):
        load_rows(str(tmp_path), "train")


def test_a_path_in_place_of_a_list_stays_one(rows):
    """Read letter by letter it would give one video per letter."""
    rows.write_text(json.dumps({"prompt": "?", "videos": "clips/a.mp4"}) + "\n")
    (row,) = load_rows(str(rows), "train")
    with pytest.raises(ValueError, match=r"Column 'videos' holds str, a list is wanted\. Use 'video'"):
        media_columns(row)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"rows\.jsonl has no rows"),
        ("[]", r"rows\.jsonl has no rows"),
        ('{"prompt": \n', r"rows\.jsonl cannot be read as rows: line 1: .*One JSON object a line"),
    ],
)
def test_a_file_without_rows_is_refused(rows, text, words):
    rows.write_text(text)
    with pytest.raises(ValueError, match=words):
        load_rows(str(rows), "train")


def test_synthetic_without_a_size_is_refused(tmp_path):
    for options in (None, {"seed": 1, "output_dir": str(tmp_path)}):
        with pytest.raises(ValueError, match="synthetic says no size"):
            load_rows("synthetic", "train", synthetic=options)
    with pytest.raises(ValueError, match="size is 0; a number of rows, 1 or more"):
        load_rows("synthetic", "train", synthetic={"size": 0, "output_dir": str(tmp_path)})


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
    with pytest.raises(
        FileNotFoundError, match=r"nowhere/rows is no local file or folder .* and the Hub does not give it"
    ):
        load_rows("nowhere/rows", "train")
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


def test_text_of_json_stays_text_and_values_keep_their_types(tmp_path):
    rows = [
        {"prompt": "?", "solution": "2024-01-05", "answers": ["2024-01-05T10:00:00Z"], "amount": 3, "mixed": 3.0},
        {"prompt": "!", "solution": "10:30", "answers": None, "amount": 2.5, "mixed": "three", "late": True},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=1))
    (tmp_path / "shards" / "data").mkdir(parents=True)
    for number, row in enumerate(rows):
        (tmp_path / "shards" / "data" / f"train-{number:05d}.jsonl").write_text(json.dumps(row) + "\n")
    for name in ("rows.jsonl", "rows.json", "shards"):
        found = load_rows(str(tmp_path / name), "train").to_list()
        assert found == [{**rows[0], "late": None}, rows[1]], name


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"prompt": "?"}\n{"prompt": "caf\xe9"}\n', r"line 2: 'utf-8' codec"),
        (b'{"prompt": "?"}\n["a"]\n', r"row 2 is 'a'; a JSON object is wanted"),
        (b'{"prompt": "?"}\n{"prompt": "\\uD83D"}\n', r"line 2: 'utf-8' codec can't encode"),
        (b'{"id": 1%s}\n' % (b"0" * 30), "cannot be read as rows: .*int"),
    ],
)
def test_a_json_file_that_holds_no_rows_says_where(tmp_path, content, words):
    (tmp_path / "rows.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_rows(str(tmp_path / "rows.jsonl"), "train")


def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "?"}\n')
    assert load_rows(str(tmp_path / "rows.jsonl"), "train").to_list() == [{"prompt": "?"}]
