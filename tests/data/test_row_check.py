"""Every row is checked once: what is found, its line in the file, and the time it takes."""

import json
import subprocess
import sys
import time

import pytest
from datasets import Dataset, Features, Image, Value, Video, load_dataset

from tests.helpers import message
from trl_perception.data.load import load_rows
from trl_perception.data.row_check import check_rows, find_problems, stored_rows
from trl_perception.media import MediaSettings
from trl_perception.rewards import accuracy_reward, format_reward, solution_check, temporal_iou_reward


def write(file, rows):
    """Lines with a blank line after the first."""
    lines = [json.dumps(row) for row in rows]
    file.write_text("\n".join([lines[0], "", *lines[1:]]) + "\n")
    return str(file)


def good(number, **changes):
    row = {"id": f"r{number}", "prompt": message("Which?", "video"), "videos": ["a.mp4"]}
    return {**row, "problem_type": "numerical", "solution": "3", **changes}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not looked into")
    return tmp_path


def found(row, **options):
    return [(problem.kind, problem.detail) for problem in find_problems([row], **options)]


def test_good_rows_pass_without_being_decoded(folder):
    rows = load_rows(write(folder / "train.jsonl", [good(1), good(2)]), "train")
    assert check_rows(rows, settings=MediaSettings().request, solutions=solution_check([accuracy_reward])) is None


def test_all_that_is_wrong_is_one_table_with_file_and_line(folder):
    rows = [
        good(1),
        good(2, videos=["b.mp4"]),
        good(3, prompt=message("Which?")),
        good(4, solution="many"),
        good(5, problem_type="maths"),
        good(6, videos=["c.mp4"], solution=None),
        *(good(number, solution="few") for number in range(7, 12)),
    ]
    data = load_rows(write(folder / "train.jsonl", rows), "train")
    with pytest.raises(ValueError, match=r"10 of 11 rows of the training data cannot be used:") as error:
        check_rows(data, settings=MediaSettings().request, solutions=solution_check([accuracy_reward]))
    said = str(error.value)
    # a blank line follows the first: row n is in line n + 1
    assert f"{folder / 'train.jsonl'}, line 3 (id r2): {folder / 'b.mp4'}" in said
    assert "line 4 (id r3): The prompt has 0 video placeholder(s)" in said
    assert "line 5 (id r4): solution 'many' does not suit problem_type 'numerical'" in said
    assert "line 6 (id r5): unknown problem_type 'maths'" in said
    assert f"line 7 (id r6): {folder / 'c.mp4'}" in said
    assert "media that do not exist: 2 rows" in said
    assert "problem_type and solution: 6 rows" in said  # r4 and r7 to r11 have the same sentence
    assert "line 9 (id r8)" in said
    assert "line 10 (id r9)" not in said
    assert "and 3 more" in said
    assert "check_rows=False skips this check" in said


def test_missing_files_are_a_warning_where_they_are_left_out(folder):
    rows = load_rows(write(folder / "train.jsonl", [good(1), good(2, videos=["b.mp4"])]), "train")
    table = check_rows(rows, skip_missing=True)
    assert table.startswith("1 of 2 rows of the training data will be left out")
    assert f"line 3 (id r2): {folder / 'b.mp4'}" in table
    rows = load_rows(write(folder / "train.jsonl", [good(1), good(2, videos=["b.mp4"], prompt=message(" "))]), "train")
    with pytest.raises(ValueError, match="1 of 2 rows"):
        check_rows(rows, skip_missing=True)


@pytest.mark.parametrize("change", ["limit", "template", "filter", "shuffle", "filter and map", "parquet", "in memory"])
def test_rows_keep_their_place_through_what_is_done_to_them(folder, change):
    file = write(folder / "train.jsonl", [good(1), good(2), good(3, videos=["b.mp4"]), good(4)])
    rows = load_rows(file, "train", prompt_template="think_answer" if change == "template" else "none")
    place = f"{file}, line 4 (id r3)"
    if change == "limit":
        rows = rows.select(range(3))
    elif change == "filter":
        rows = rows.filter(lambda row: row["id"] != "r1")
    elif change == "shuffle":
        rows = rows.shuffle(seed=1)
    elif (
        change == "filter and map"
    ):  # written again, so that the third row is the second: no line is better than a wrong one
        rows = rows.filter(lambda row: row["id"] != "r1").map(lambda row: {"more": 1})
        place = "row 2 (id r3)"
    elif change == "parquet":
        rows.to_parquet(str(folder / "rows.parquet"))
        rows = load_rows(str(folder / "rows.parquet"), "train")
        place = f"{folder / 'rows.parquet'}, row 3 (id r3)"
    elif change == "in memory":
        rows = Dataset.from_list(list(rows))
        place = "row 3 (id r3)"
    with pytest.raises(ValueError, match="1 of ") as error:
        check_rows(rows)
    assert f"    {place}: {folder / 'b.mp4'}" in str(error.value)


def test_media_in_every_place_are_looked_for(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    there, gone, frame = str(folder / "a.mp4"), str(folder / "b.mp4"), str(folder / "1.png")
    (folder / "1.png").touch()

    def blocks(*media):
        return {"prompt": [{"role": "user", "content": [*media]}]}

    fine = [
        there,
        f"file://{there}",
        "~/a.mp4",
        "https://x.org/b.mp4",
        b"x",
        [frame, frame],
        {"path": gone, "bytes": b"x"},
    ]
    for medium in fine:
        assert found(blocks({"type": "video", "video": medium})) == []
        assert found({"prompt": message("?", "video"), "videos": [medium]}) == []
    bad = [gone, f"file://{gone}", "~/b.mp4", [frame, frame + "x"], {"path": gone, "bytes": None}, str(folder)]
    for medium in bad:
        ((kind, _),) = found(blocks({"type": "video", "video": medium}))
        assert kind == "media that do not exist"
        assert len(found({"prompt": message("?", "video"), "video": medium})) == 1


def test_relative_paths_count_from_the_file_wherever_they_stand(folder):
    def in_a_block(block):
        return good(1, prompt=[{"role": "user", "content": [block]}], videos=[])

    (folder / "a.png").touch()
    rows = [
        good(0),
        good(1, videos=[{"path": "a.mp4"}]),  # the column holds two types now, and is one of Json
        in_a_block({"type": "image_url", "image_url": {"url": "a.png"}}),
        in_a_block({"type": "video_url", "video_url": "a.mp4"}),
        in_a_block({"type": "image", "image": {"path": "a.png"}}),
        good(5, videos=[3]),
    ]
    data = load_rows(write(folder / "train.jsonl", rows), "train")
    with pytest.raises(ValueError, match=r"1 of 6 rows of [\s\S]* line 7 \(id r5\): A video is 3, of type int"):
        check_rows(data)


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({"type": "image_url", "image_url": {"uri": "a.png"}}, "An image is None, of type NoneType; a path"),
        (
            {"type": "video", "video": {"file": "a.mp4"}},
            "A video is a mapping with the keys ['file']; 'path' or 'bytes'",
        ),
        (
            {"type": "video", "video": "a", "video_start": 5, "video_end": 2},
            "video_end is 2 s, not after video_start 5 s",
        ),
        ({"type": "video", "video": "a", "video_end": 0}, "video_end is 0 s, not after video_start 0 s; set it above"),
    ],
)
def test_a_block_that_cannot_be_read_is_one_sentence(block, sentence):
    ((_, detail), *_) = found({"prompt": [{"role": "user", "content": [block]}]})
    assert detail.startswith(sentence)


def test_rows_of_a_json_list_are_numbered(folder):
    file = folder / "train.json"
    file.write_text(json.dumps([good(1), good(2, videos=["b.mp4"])], indent=1))
    with pytest.raises(ValueError, match=f"{file}, row 2 .id r2.: {folder / 'b.mp4'}"):
        check_rows(load_rows(str(file), "train"))


def test_a_listed_folder_gives_the_same_answers(folder):
    for number in range(20):
        (folder / f"{number}.mp4").touch()
    (folder / "30.mp4").mkdir()
    rows = [{"prompt": message("?", "video"), "video": str(folder / f"{number}.mp4")} for number in range(31)]
    assert [problem.number for problem in find_problems(rows)] == list(range(20, 31))


def test_settings_of_blocks_are_read(folder):
    block = {"type": "video", "video": str(folder / "a.mp4"), "max_frame": 4}
    row = {"prompt": [{"role": "user", "content": [block]}]}
    assert found(row) == [
        (
            "settings of a media block",
            "a video block has the key 'max_frame', which is no setting; did you mean 'max_frames'?",
        )
    ]
    block = {**block, "max_frame": None, "max_pixels": "784"}
    ((_, detail),) = found({"prompt": [{"role": "user", "content": [block]}]}, settings=MediaSettings().request)
    assert detail.startswith("max_pixels is '784', of type str")


def test_only_rewards_that_read_solutions_ask_for_them():
    row = good(1, problem_type="maths", solution=None)
    assert solution_check([format_reward, lambda completions, **columns: [0.0]]) is None
    solution_check([temporal_iou_reward])(row)  # other types are not its own
    with pytest.raises(ValueError, match="unknown problem_type 'maths'"):
        solution_check([format_reward, accuracy_reward])(row)
    with pytest.raises(ValueError, match="does not suit problem_type 'temporal grounding'"):
        solution_check([temporal_iou_reward])(good(1, problem_type="temporal grounding", solution="soon"))
    for nothing in (None, float("nan"), ""):
        with pytest.raises(ValueError, match=r"does not suit|wanted|nan"):
            solution_check([accuracy_reward])(good(1, solution=nothing))


def test_columns_of_media_are_not_decoded(tmp_path, clips, pictures):
    rows = {
        "prompt": [message("?", "video", "image")] * 2,
        "video": [{"path": clips[0], "bytes": None}, {"path": None, "bytes": b"x" * 9}],
        "images": [[{"path": None, "bytes": b"no picture"}], [{"path": "gone.png", "bytes": None}]],
    }
    blocks = [{"role": Value("string"), "content": [{"type": Value("string"), "text": Value("string")}]}]
    features = Features({"prompt": blocks, "video": Video(), "images": [Image()]})
    dataset = Dataset.from_dict(rows, features=features)
    first, second = stored_rows(dataset)
    assert (first["video"], second["video"]) == ({"bytes": None, "path": clips[0]}, {"bytes": b".", "path": None})
    assert (first["images"], second["images"]) == (
        [{"bytes": b".", "path": None}],
        [{"bytes": None, "path": "gone.png"}],
    )
    assert [problem.detail for problem in find_problems(stored_rows(dataset))] == ["gone.png"]
    # slices of a column, and rows without any
    assert list(stored_rows(dataset.select([1]))) == [second]
    assert list(stored_rows(dataset.select(range(1, 2)))) == [second]
    assert list(stored_rows(dataset.select([]))) == []


def test_columns_of_mixed_types_are_read():
    rows = {
        "prompt": [[{"role": "user", "content": "?"}], [{"role": "user", "content": [{"type": "text", "text": "?"}]}]]
    }
    dataset = Dataset.from_dict(rows, on_mixed_types="use_json")
    assert [row["prompt"] for row in stored_rows(dataset)] == rows["prompt"]
    assert check_rows(dataset) is None


def test_rows_of_datasets_own_loader_are_numbered(folder):
    file = write(folder / "train.jsonl", [good(1), good(2, videos=["b.mp4"])])
    rows = load_dataset("json", data_files=file, split="train", cache_dir=str(folder / "cache"))
    with pytest.raises(ValueError, match=r"row 2 \(id r2\)"):
        check_rows(rows)


def test_thousands_of_rows_take_moments(folder):
    for number in range(2000):
        (folder / f"{number}.mp4").touch()
    rows = Dataset.from_list([good(number, videos=[str(folder / f"{number}.mp4")]) for number in range(2000)])
    start = time.process_time()
    assert check_rows(rows, settings=MediaSettings().request, solutions=solution_check([accuracy_reward])) is None
    assert time.process_time() - start < 2  # a tenth of it here: 100,000 rows in some seconds


def test_the_check_needs_no_torch():
    code = "import sys, trl_perception.data.row_check; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
