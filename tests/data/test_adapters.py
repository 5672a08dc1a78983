"""Each published layout becomes rows, checked field by field; errors name what breaks a layout."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests import layouts
from tests.layouts import LAYOUTS
from trl_perception.data.adapters import ADAPTERS, RecordError, Source, get_adapter
from trl_perception.rewards.temporal import parse_spans


def rows_of(name, folder, split=None):
    """All rows that the adapter makes from a layout."""
    adapter, source = get_adapter(name), Source(folder, split or LAYOUTS[name][1])
    records = adapter.read(adapter.files(source)[0])
    rows = [adapter.row(record, source) for record in records.read(0)]
    assert records.count == len(rows)
    return rows


def written(name, folder, clips, pictures, **changes):
    return LAYOUTS[name][0](folder, clips, pictures, **changes)


def texts(row):
    """The user turn as a list: "<video>" and "<image>" for media, text unchanged."""
    (message,) = row["prompt"]
    return [f"<{block['type']}>" if block["type"] != "text" else block["text"] for block in message["content"]]


def test_every_adapter_has_a_layout_here():
    assert set(LAYOUTS) == set(ADAPTERS)


def test_video_r1(tmp_path, clips, pictures):
    rows = rows_of("video-r1", written("video-r1", tmp_path, clips, pictures))
    assert [row["problem_type"] for row in rows] == ["multiple choice", "numerical", "OCR", "free text", "regression"]
    assert [row["solution"] for row in rows] == ["B", "16", "STOP", "colors change", "4.0"]
    assert texts(rows[0]) == ["<video>", "What color is scene 1?\nA. red\nB. blue"]
    assert rows[0]["options"] == ["A. red", "B. blue"]
    assert rows[0]["videos"] == [str(tmp_path / "made" / "0.mp4")]
    assert (texts(rows[2])[0], rows[2]["images"], rows[2]["videos"]) == ("<image>", [str(tmp_path / "made/0.png")], [])
    assert [row["id"] for row in rows] == ["1", "2", "3", "4", "5"]


def test_video_r1_cot_has_a_completion(tmp_path, clips, pictures):
    rows = rows_of("video-r1-cot", written("video-r1-cot", tmp_path, clips, pictures))
    (message,) = rows[0]["completion"]
    assert message["role"] == "assistant"
    assert message["content"] == [{"type": "text", "text": "<think>I look.</think>\n<answer>B</answer>"}]
    assert rows[0]["solution"] == "B"


@pytest.mark.parametrize("split", ["train", "validation_L1"])
def test_seed_bench_r1(tmp_path, clips, pictures, split):
    row, _ = rows_of("seed-bench-r1", written("seed-bench-r1", tmp_path, clips, pictures), split)
    assert texts(row)[:2] == ["<video>", "<image>"]
    assert texts(row)[2].endswith("to make tea?\nA. wash cup\nB. dry cup\nC. fill cup\nD. drop cup")
    assert row["solution"] == "C"
    assert row["videos"] == [str(tmp_path / "videos/EpicKitchens/0.mp4")]
    assert row["images"] == [str(tmp_path / "images/EpicKitchens/0.png")]


def test_next_qa(tmp_path, clips, pictures):
    first, second = rows_of("next-qa", written("next-qa", tmp_path, clips, pictures))
    assert texts(first) == ["<video>", "how many play?\nA. one\nB. two\nC. three\nD. four\nE. five"]
    assert (first["solution"], second["solution"]) == ("A", "D")  # answers 0 and 3
    assert (first["id"], second["id"]) == ("4010069381_6", "3238737531_7")
    assert first["videos"] == [str(tmp_path / "NExTVideo/4010069381.mp4")]
    assert second["videos"] == [str(tmp_path / "NExTVideo/1164/3238737531.mp4")]  # by its longer name


def test_next_gqa_keeps_the_spans_beside_the_choice(tmp_path, clips, pictures):
    first, second = rows_of("next-gqa", written("next-gqa", tmp_path, clips, pictures))
    assert (first["problem_type"], first["solution"]) == ("multiple choice", "A")  # answer "one"
    assert first["time_spans"] == [[0.0, 1.5], [2.25, 3.0]]
    assert first["duration"] == 4.0
    assert second is None  # its clip has no span for this question


def test_next_gqa_reads_answers_by_number_too(tmp_path, clips, pictures):
    records = layouts.next_qa_records("video", ("4", "0"))
    first, _ = rows_of("next-gqa", written("next-gqa", tmp_path, clips, pictures, records=records))
    assert first["solution"] == "E"


def test_next_gqa_grounding_asks_for_the_spans(tmp_path, clips, pictures):
    first, _ = rows_of("next-gqa-grounding", written("next-gqa-grounding", tmp_path, clips, pictures))
    assert first["problem_type"] == "temporal grounding"
    assert texts(first)[1].startswith("how many play?\nThe answer is: one.\n")
    assert parse_spans(first["solution"]) == [(0.0, 1.5), (2.25, 3.0)]
    assert first["options"] == []


def test_virl39k(tmp_path, clips, pictures):
    first, second = rows_of("virl39k", written("virl39k", tmp_path, clips, pictures))
    assert texts(first) == ["<image>", "Find x."]
    assert texts(second) == ["<image>", "<image>", "Add."]
    assert (first["solution"], second["solution"]) == ("\\frac{1}{2}", "12")
    assert (first["id"], first["problem_type"]) == ("made-1", "mathematics")
    assert second["images"] == [str(tmp_path / "images/1.png"), str(tmp_path / "images/2.png")]


def test_geometry3k(tmp_path, clips, pictures):
    first, second = rows_of("geometry3k", written("geometry3k", tmp_path, clips, pictures))
    assert texts(first) == ["<image>", "Find y."]
    assert (first["solution"], second["solution"]) == ("2 \\sqrt { 221 }", "28.0")
    assert (first["id"], second["id"]) == ("geometry3k-train-00000", "geometry3k-train-00001")
    assert first["images"][0].startswith(b"\x89PNG")


def test_jsonl(tmp_path, clips, pictures):
    rows = rows_of("jsonl", written("jsonl", tmp_path, clips, pictures))
    assert [row["id"] for row in rows] == ["a", "train-2", "c", "d"]
    assert texts(rows[1]) == [
        "Which is ",
        "<image>",
        " like, ",
        "<video>",
        " or ",
        "<video>",
        "?\nA. the first\nB. the second",
    ]
    assert (rows[1]["solution"], rows[1]["options"]) == ("B", ["A. the first", "B. the second"])
    assert rows[2]["time_spans"] == [[1.0, 2.5]]
    assert (rows[3]["videos"], rows[3]["images"]) == ([], [])


def test_jsonl_leaves_urls_and_absolute_paths(tmp_path, clips):
    record = {**layouts.jsonl_records()[0], "video": "https://example.org/a.mp4"}
    layouts.write_lines(tmp_path / "train.jsonl", [record, {**record, "video": clips[0]}])
    assert [row["videos"] for row in rows_of("jsonl", tmp_path)] == [["https://example.org/a.mp4"], [clips[0]]]


def test_a_tag_in_a_row_without_such_media_is_text(tmp_path, clips):
    record = {**layouts.jsonl_records()[0], "question": "What is <image> in HTML?", "video": clips[0]}
    layouts.write_lines(tmp_path / "train.jsonl", [record])
    (row,) = rows_of("jsonl", tmp_path)
    assert texts(row) == ["<video>", "What is <image> in HTML?"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompt": None}, "no prompt"),
        ({"prompt": "What?"}, "must be conversational"),
        ({"prompt": "What?", "videos": []}, "'prompt' is plain text; messages"),
        ({"prompt": [{"content": "?"}]}, "Message 1 has the role None"),
        ({"prompt": [{"role": "user", "content": {"type": "text", "text": "?"}}]}, "is a dict; a text or a list"),
        ({"prompt": [{"role": "user", "content": [{"type": "video", "max_frame": 2}]}]}, "did you mean 'max_frames'"),
        ({"videos": []}, "1 video placeholder.* holds 0"),
        ({"video": ["0.mp4"], "videos": None}, "a list that holds the clip '0.mp4'"),
        ({"videos": [["0.png", "1.png"]]}, "a video is given as list"),
        ({"question": "?"}, "unknown field 'question'; beside 'prompt' known are"),
        ({"solution": "many"}, "'many' does not suit problem_type 'numerical'"),
        ({"solution": None}, "field 'solution' is null"),
    ],
)
def test_malformed_rows_of_trl_are_named(tmp_path, change, words):
    prompt = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "?"}]}]
    row = {"id": "a", "prompt": prompt, "videos": ["0.mp4"], "problem_type": "numerical", "solution": "3"}
    layouts.write_lines(tmp_path / "train.jsonl", [{**row, **change}])
    with pytest.raises(RecordError, match=rf"train\.jsonl, record 1 \(id a\): .*{words}"):
        rows_of("jsonl", tmp_path)


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
def test_own_rows_come_as_lists_and_parquet_too(tmp_path, suffix, pictures):
    image = {"bytes": Path(pictures[0]).read_bytes(), "path": None}
    rows = [
        {"prompt": [{"role": "user", "content": "Which?"}], "images": [image if suffix == ".parquet" else pictures[0]]}
    ]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    else:
        (tmp_path / "train.json").write_text(json.dumps(rows))
    (row,) = rows_of("jsonl", tmp_path)
    assert row["images"] == [image["bytes"] if suffix == ".parquet" else pictures[0]]
    assert row["prompt"] == [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}]


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("jsonl", "train.jsonl", '{"question": "x"}\n{"question": "é"}\n'),
        ("video-r1", "Video-R1-260k.json", '[{"a": "x"},\n{"a": "é"}]'),
        ("next-qa", "val.csv", "video,qid\né,1\n"),
    ],
)
def test_another_encoding_is_named_with_its_line(tmp_path, name, file, content):
    (tmp_path / file).write_bytes(content.encode("latin-1"))
    with pytest.raises(RecordError, match=rf"{file}, line 2 is not UTF-8 \(byte 0xe9\)\. Save the file in UTF-8"):
        rows_of(name, tmp_path)


def test_a_byte_order_mark_is_no_content(tmp_path, clips):
    record = {**layouts.jsonl_records()[0], "video": clips[0]}
    (tmp_path / "train.jsonl").write_text(json.dumps(record), encoding="utf-8-sig")
    assert len(rows_of("jsonl", tmp_path)) == 1


def test_a_path_may_begin_with_a_tilde(tmp_path, clips, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    record = {**layouts.jsonl_records()[0], "video": "~/a.mp4"}
    layouts.write_lines(tmp_path / "train.jsonl", [record])
    assert rows_of("jsonl", tmp_path)[0]["videos"] == ["/home/me/a.mp4"]


def test_media_may_lie_in_another_folder(tmp_path, clips, pictures):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "Video-R1-260k.json").write_text(json.dumps(layouts.video_r1_records()[:1]))
    source = Source(tmp_path / "rows" / "Video-R1-260k.json", media=tmp_path / "elsewhere")
    adapter = ADAPTERS["video-r1"]
    (record,) = adapter.read(adapter.files(source)[0]).read(0)
    assert adapter.row(record, source)["videos"] == [str(tmp_path / "elsewhere/made/0.mp4")]


MALFORMED = [  # adapter, field, its value (None removes the field), the error message
    ("video-r1", "problem", None, r"Video-R1-260k\.json, record 1 \(problem_id 1\): field 'problem' is missing"),
    ("video-r1", "problem", " ", "field 'problem' is empty"),
    ("video-r1", "problem", ["a"], "field 'problem' must be text, found list"),
    ("video-r1", "problem_type", "math", "'math'; one of 'multiple choice', 'numerical', 'OCR'"),
    ("video-r1", "data_type", "audio", "field 'data_type' is 'audio'"),
    ("video-r1", "options", [], "needs 2 to 26 options, found 0"),
    ("video-r1", "options", "A. red", "field 'options' must be a list of texts"),
    ("video-r1", "solution", "<answer>C</answer>", "'C' picks none of its 2 options"),
    ("video-r1", "solution", "<answer></answer>", "picks none of its 2 options"),
    ("video-r1", "path", None, "field 'path' is missing"),
    ("video-r1", "problem", "<image> Which?", "0 <video> and 1 <image> tags for 1 videos and 0 images"),
    ("video-r1-cot", "process", "", "field 'process' is empty"),
    ("video-r1-cot", "process", "I look.", "'process' must be <think>"),
    ("video-r1-cot", "solution", "B", "'solution' must be <answer>"),
    (
        "seed-bench-r1",
        "golden_choice_idx",
        "E",
        r"training_6k\.jsonl, record 1 \(sample_id P01_0\).*'golden_choice_idx'",
    ),
    ("seed-bench-r1", "choice_d", None, "field 'choice_d' is missing"),
    ("seed-bench-r1", "current_observation_basename", None, "field 'current_observation_basename' is missing"),
    ("next-qa", "answer", "5", r"val\.csv, record 1 \(qid 6\): field 'answer' is '5'; one of '0', '1'"),
    ("next-qa", "a4", "", "field 'a4' is empty"),
    ("next-gqa", "answer", "seven", "the text of one option, or a number from 0 to 4"),
    ("virl39k", "answer", "", "field 'answer' is empty"),
    ("virl39k", "question", "<image> and <image>", "2 <image> tags for 0 videos and 1 images"),
    ("virl39k", "image", [], "1 <image> tags for 0 videos and 0 images"),
    ("jsonl", "problem_type", "maths", "one of 'multiple choice'"),
    ("jsonl", "answer", "many", "'many' does not suit problem_type 'numerical'"),
    ("jsonl", "video", ["1.mp4"], "field 'video' holds a list; one path is wanted there. Several go into 'videos'"),
    ("jsonl", "videos", ["1.mp4"], "both fields 'video' and 'videos' are set"),
    ("jsonl", "vidoe", "1.mp4", "unknown field 'vidoe'"),
    ("jsonl", "time_spans", [[2, 1]], "start < end are wanted"),
]
RECORDS = {
    "video-r1": layouts.video_r1_records,
    "video-r1-cot": lambda: [{**r, "process": "<think>I look.</think>"} for r in layouts.video_r1_records()],
    "seed-bench-r1": layouts.seed_bench_records,
    "next-qa": layouts.next_qa_records,
    "next-gqa": lambda: layouts.next_qa_records("video_id", ("one", "four")),
    "virl39k": layouts.virl39k_records,
    "jsonl": layouts.jsonl_records,
}


@pytest.mark.parametrize(("name", "field", "value", "words"), MALFORMED)
def test_malformed_records_are_named(tmp_path, clips, pictures, name, field, value, words):
    records = RECORDS[name]()
    if value is None:
        del records[0][field]
    else:
        records[0][field] = value
    folder = written(name, tmp_path, clips, pictures, records=records)
    with pytest.raises(RecordError, match=words):
        rows_of(name, folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"location": {"6": [[3, 1]]}}, "start < end"),
        ({"location": {"6": [[0, 1], ["a", 2]]}}, "time spans are"),
        ({"duration": None}, "field 'duration' is null"),
        ({"duration": "long"}, "duration of clip 4010069381 is 'long'"),
        ({"location": None}, r"gsub_val\.json, record 1: field 'location' is null"),
    ],
)
def test_malformed_spans_are_named(tmp_path, clips, pictures, change, words):
    spans = layouts.next_gqa_spans()
    spans["4010069381"].update(change)
    with pytest.raises(RecordError, match=words):
        rows_of("next-gqa", written("next-gqa", tmp_path, clips, pictures, spans=spans))


def test_images_without_bytes_are_named(tmp_path, clips, pictures):
    records = layouts.geometry3k_records(pictures)
    records[0]["images"] = [{"bytes": None, "path": "a.png"}]
    with pytest.raises(RecordError, match="record 1: field 'images' must be a list of images with their bytes"):
        rows_of("geometry3k", written("geometry3k", tmp_path, clips, pictures, records=records))


@pytest.mark.parametrize(
    ("name", "file", "content", "words"),
    [
        ("video-r1", "Video-R1-260k.json", "{", "is not JSON"),
        ("video-r1", "Video-R1-260k.json", '{"a": 1}', "holds a JSON dict; a list"),
        ("video-r1", "Video-R1-260k.json", "[1]", "record 1 is a int; an object"),
        ("jsonl", "train.jsonl", '{"id": "a"}\n\n{', "line 3 is not JSON"),
        ("next-qa", "val.csv", "video,qid\na,1,2\n", "record 1 has more or fewer cells"),
        ("next-qa", "val.csv", "video,qid\na\n", "record 1 has more or fewer cells"),
        ("virl39k", "39Krelease.parquet", "PAR", "is not parquet"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, name, file, content, words):
    (tmp_path / file).write_text(content)
    with pytest.raises(RecordError, match=words):
        rows_of(name, tmp_path)


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_empty_folder_says_what_is_looked_for(tmp_path, name):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileNotFoundError, match=r"holds none of .*\(found: notes\.txt\)"):
        rows_of(name, tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        rows_of(name, tmp_path / "nowhere")


def test_several_shards_are_refused_rather_than_passed_over(tmp_path, clips, pictures):
    written("geometry3k", tmp_path, clips, pictures)
    (tmp_path / "data" / "train-00001-of-00002.parquet").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"holds 2 files data/train-\*\.parquet; one is wanted"):
        rows_of("geometry3k", tmp_path)


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(ValueError, match=r"unknown data set 'Video_R1'; did you mean 'video-r1'"):
        get_adapter("Video_R1")


def test_reading_starts_anywhere(tmp_path, clips, pictures):
    for name in LAYOUTS:
        folder = tmp_path / name
        folder.mkdir()
        adapter, source = get_adapter(name), Source(written(name, folder, clips, pictures), LAYOUTS[name][1])
        records = adapter.read(adapter.files(source)[0])
        everything = list(records.read(0))
        assert list(records.read(1)) == everything[1:]
        assert [record.number for record in everything] == list(range(1, len(everything) + 1))
