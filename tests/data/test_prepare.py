"""`prepare`: what is kept and dropped, how an interrupted run resumes, and what `load_rows` reads from the folder."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL import Image
from transformers import AutoProcessor

from tests import layouts
from tests.conftest import write_clip
from tests.layouts import LAYOUTS
from trl_perception.assets import model_path
from trl_perception.data.adapters import RecordError, Source
from trl_perception.data.load import load_rows
from trl_perception.data.preparation import PrepareOptions, as_text, prepare
from trl_perception.data.preparation import run as run_module
from trl_perception.data.preparation.filters import read_pass_rates
from trl_perception.data.preparation.folder import SplitFolder
from trl_perception.data.preparation.media_check import MediaChecker
from trl_perception.families import family_of_processor
from trl_perception.media import PromptPreparer, VideoSettings, conversation


@pytest.fixture
def prepared(tmp_path, clips, pictures):
    """Prepares a layout: `prepared(name, records=None, restart=False, **options)` -> summary; `.out`, `.source`."""

    def run(name="jsonl", records=None, restart=False, **options):
        writer, split = LAYOUTS[name]
        run.source.mkdir(exist_ok=True)
        writer(run.source, clips, pictures, **({"records": records} if records else {}))
        source = Source(run.source, split)
        return prepare(name, source, run.out, PrepareOptions(**options), restart=restart, progress=False)

    run.source, run.out = tmp_path / "source", tmp_path / "out"
    return run


def flashes(count, **changes):
    """Rows of the JSONL layout about the same clip."""
    row = {"question": "How many?", "video": "0.mp4", "problem_type": "numerical", "answer": "1"}
    return [{**row, "id": f"row{number}", **changes} for number in range(count)]


def ids(folder, split="train"):
    return load_rows(str(folder), split)["id"]


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("check", ["none", "exists", "decode"])
def test_every_layout_is_prepared_and_loads(prepared, name, check):
    summary = prepared(name, check=check)
    rows = load_rows(str(prepared.out), LAYOUTS[name][1])
    assert len(rows) == summary["kept"] > 0
    assert sum(summary["problem_types"].values()) == summary["kept"]
    # NExT-GQA's second question has no span
    assert summary["dropped"] == ({"no time spans": 1} if name.startswith("next-gqa") else {})
    for row in rows:
        assert all(Path(path).is_file() for path in row["videos"] + row["images"])
        kinds = [block["type"] for block in row["prompt"][0]["content"]]
        assert (kinds.count("video"), kinds.count("image")) == (len(row["videos"]), len(row["images"]))
        assert (row["visual_tokens"] is None) == (check == "none")
        if check != "none":
            assert row["duration"] == 4.0 * len(row["videos"])
    assert ("completion" in rows.features) == (name == "video-r1-cot")


def test_visual_tokens_by_hand(prepared):
    summary = prepared(records=flashes(1), video=VideoSettings(fps=2.0, max_frames=6, max_pixels=56 * 56))
    # 4 s at 2 frames a second, 6 at most: 3 cells of 56 x 56 pixels, 2 * 2 tokens each
    assert load_rows(str(prepared.out), "train")[0]["visual_tokens"] == 12
    assert summary["visual_tokens"]["median"] == 12
    assert summary["duration"] == {"min": 4, "median": 4, "95 %": 4, "max": 4, "mean": 4, "rows": 1}


def test_rows_of_trl_keep_prompt_media_and_settings(prepared, clips, pictures):
    def user(*blocks):
        return [{"role": "system", "content": "Look."}, {"role": "user", "content": [*blocks]}]

    text = {"type": "text", "text": "Which?"}
    records = [
        {
            "id": "a",
            "prompt": user({"type": "video"}, text),
            "videos": ["0.mp4"],
            "solution": 3,
            "problem_type": "numerical",
        },
        {
            "id": "b",
            "prompt": user(text, {"type": "image", "image": "0.png", "max_pixels": 28 * 56}),
            "solution": "anything",
        },
        {"id": "c", "prompt": [{"role": "user", "content": "<image>And <video>?"}], "image": "1.png"},
        {
            "id": "d",
            "prompt": user({"type": "video", "nframes": 2}, {"type": "video", "video": "1.mp4"}),
            "video": "2.mp4",
        },
        {"id": "e", "prompt": [{"role": "user", "content": "No media."}]},
    ]
    summary = prepared(records=records, check="decode")
    assert summary["kept"] == 5, summary
    assert summary["problem_types"] == {"without a problem type": 4, "numerical": 1}
    rows = {row["id"]: row for row in load_rows(str(prepared.out), "train")}
    assert (rows["a"]["solution"], rows["a"]["problem_type"], rows["b"]["problem_type"]) == ("3", "numerical", None)
    loaded = {name: conversation(row) for name, row in rows.items()}
    there = {name: str(prepared.source / name) for name in ("0.mp4", "1.mp4", "2.mp4", "0.png", "1.png")}
    look = {"role": "system", "content": [{"type": "text", "text": "Look."}]}
    assert loaded == {
        "a": [look, {"role": "user", "content": [{"type": "video", "video": there["0.mp4"]}, text]}],
        "b": [
            look,
            {"role": "user", "content": [text, {"type": "image", "image": there["0.png"], "max_pixels": 28 * 56}]},
        ],
        "c": [
            {
                "role": "user",
                "content": [{"type": "image", "image": there["1.png"]}, {"type": "text", "text": "And <video>?"}],
            }
        ],
        "d": [
            look,
            {
                "role": "user",
                "content": [
                    {"type": "video", "video": there["2.mp4"], "nframes": 2},
                    {"type": "video", "video": there["1.mp4"]},
                ],
            },
        ],
        "e": [{"role": "user", "content": [{"type": "text", "text": "No media."}]}],
    }
    # 8 frames of 56 x 56: 4 cells of 4 tokens; 56 x 84 within 28 * 56 pixels is 28 x 28; 56 x 84; 2 frames and 8 frames
    assert {name: row["visual_tokens"] for name, row in rows.items()} == {"a": 16, "b": 1, "c": 6, "d": 4 + 16, "e": 0}


SIZES = {
    "nothing set": {},
    "frames": {"video_settings": VideoSettings(fps=4.0, max_frames=6)},
    "pixels": {"video_settings": VideoSettings(fps=1.0, max_pixels=100 * 100), "image_max_pixels": 90 * 90},
    "least pixels": {"video_settings": VideoSettings(min_pixels=150 * 150), "image_min_pixels": 200 * 200},
    "pixels of the clip": {"video_settings": VideoSettings(total_pixels=8 * 60 * 60, min_pixels=784)},
}
BLOCKS = {
    "plain": [{"type": "video"}, {"type": "image"}],
    "limits": [{"type": "image", "max_pixels": 60 * 60}, {"type": "image"}, {"type": "video", "nframes": 4}],
    "sizes": [
        {"type": "image", "resized_height": 100, "resized_width": 60},
        {"type": "video", "resized_height": 100, "resized_width": 60, "fps": 1.0},
        {"type": "video", "max_pixels": 84 * 84, "video_end": 2.0},
    ],
}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_the_tokens_counted_are_those_trained_on(tmp_path, size, blocks):
    """By the header, by decoding, by the preparer that trainers use, and by the processor's own count."""
    clip = write_clip(tmp_path / "clip.mp4", seed=0, size=168)
    Image.fromarray(np.zeros((230, 310, 3), np.uint8)).save(tmp_path / "a.png")
    media = {"image": str(tmp_path / "a.png"), "video": clip}
    content = [*BLOCKS[blocks], {"type": "text", "text": "?"}]
    row = {"prompt": [{"role": "user", "content": content}]}
    row |= {f"{kind}s": [media[kind] for block in BLOCKS[blocks] if block["type"] == kind] for kind in media}

    processor = AutoProcessor.from_pretrained(model_path("tiny"))
    preparer = PromptPreparer(processor, **SIZES[size])
    (prompt,) = preparer([row])
    limits = tuple(SIZES[size].get(key) for key in ("image_min_pixels", "image_max_pixels"))
    video = SIZES[size].get("video_settings", VideoSettings())
    counted = {}
    for check in ("exists", "decode"):
        options = PrepareOptions(
            check=check, video=video, image_limits=limits, sizes=family_of_processor(processor).sizes(processor)
        )
        assert options.media == preparer.media_settings
        (report,) = MediaChecker(options, workers=1)([row])
        counted[check] = report.tokens
    placeholders = sum(prompt.input_ids.count(number) for number in preparer.placeholder_ids.values())
    assert counted == {"exists": placeholders, "decode": placeholders}
    assert prompt.visual.visual_tokens == placeholders


def test_images_inside_parquet_are_written_out_and_move_along(prepared, tmp_path):
    prepared("geometry3k")
    stored = pq.read_table(next((prepared.out / "data").glob("*.parquet")))["images"].to_pylist()
    assert stored[0] == ["media/train/geometry3k-train-00000-0.png"]
    moved = tmp_path / "moved"
    prepared.out.rename(moved)
    (path,) = load_rows(str(moved), "train")[0]["images"]
    assert path == str(moved / "media/train/geometry3k-train-00000-0.png")
    assert Image.open(path).size == (84, 56)


def test_media_outside_are_absolute_and_a_moved_source_is_noticed(prepared, tmp_path):
    prepared(records=flashes(1))
    stored = pq.read_table(next((prepared.out / "data").glob("*.parquet")))["videos"].to_pylist()
    assert stored == [[str(prepared.source / "0.mp4")]]
    prepared.out.rename(tmp_path / "moved")
    assert len(load_rows(str(tmp_path / "moved"), "train")) == 1
    prepared.source.rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=r"0\.mp4 does not exist; media were moved after the preparation"):
        load_rows(str(tmp_path / "moved"), "train")


def test_relative_media_let_folder_and_source_move_together(prepared, tmp_path):
    prepared(records=flashes(1), relative_media=True)
    stored = pq.read_table(next((prepared.out / "data").glob("*.parquet")))["videos"].to_pylist()
    assert stored == [["../source/0.mp4"]]
    (tmp_path / "disk").mkdir()
    for folder in (prepared.source, prepared.out):
        folder.rename(tmp_path / "disk" / folder.name)
    (row,) = load_rows(str(tmp_path / "disk" / "out"), "train")
    assert [Path(path).resolve() for path in row["videos"]] == [tmp_path / "disk" / "source" / "0.mp4"]


def test_the_card_lets_datasets_load_a_copy_without_state(prepared, tmp_path):
    prepared("next-qa")
    prepare("next-qa", Source(prepared.source, "test"), prepared.out, progress=False)
    shutil.copytree(prepared.out, tmp_path / "copy", ignore=shutil.ignore_patterns(".prepare"))
    rows = load_dataset(str(tmp_path / "copy"))
    assert {split: len(part) for split, part in rows.items()} == {"val": 2, "test": 2}
    assert load_rows(str(tmp_path / "copy"), "test").to_list() == load_rows(str(prepared.out), "test").to_list()
    card = (prepared.out / "README.md").read_text()
    assert "## val" in card
    assert "| kept | multiple choice | 2 |" in card
    assert "| seconds of video | 4 | 4 | 4 | 4 | 4 |" in card


# What is dropped


@pytest.fixture
def faulty(prepared):
    """Rows whose media are there, missing, damaged, empty."""
    prepared.source.mkdir()
    (prepared.source / "damaged.mp4").write_bytes(b"no video")
    (prepared.source / "empty.mp4").write_bytes(b"")
    rows = flashes(5)
    for row, name in zip(rows, ("0.mp4", "nowhere.mp4", "damaged.mp4", "empty.mp4", "1.mp4"), strict=True):
        row["video"] = name
    return rows


@pytest.mark.parametrize("check", ["exists", "decode"])
def test_missing_and_unreadable_media_are_dropped_and_counted(prepared, faulty, check):
    summary = prepared(records=faulty, check=check)
    assert ids(prepared.out) == ["row0", "row4"]
    assert summary["dropped"] == {"media missing": 1, "media unreadable": 2}
    assert "nowhere.mp4 does not exist" in summary["examples"]["media missing"]
    text = as_text(summary)
    assert "5 records, 2 rows kept" in text
    assert "dropped          2  media unreadable, first: row row2" in text


def test_no_check_keeps_what_it_does_not_see(prepared, faulty):
    assert prepared(records=faulty, check="none")["dropped"] == {}
    assert len(ids(prepared.out)) == 5


def test_only_decoding_sees_a_damaged_body(prepared, clips):
    prepared.source.mkdir()
    whole = bytearray(Path(clips[0]).read_bytes())
    start, end = whole.index(b"mdat") + 4, whole.index(b"moov") - 4  # image data; the header after it stays
    whole[start:end] = b"\xff" * (end - start)
    (prepared.source / "body.mp4").write_bytes(whole)
    rows = [*flashes(1), *flashes(1, id="body", video="body.mp4")]
    assert prepared(records=rows, check="exists")["kept"] == 2
    assert prepared(records=rows, check="decode", restart=True)["dropped"] == {"media unreadable": 1}


def test_types_and_durations_filter(prepared):
    summary = prepared("video-r1", problem_types=("numerical", "OCR"))
    assert summary["problem_types"] == {"numerical": 1, "OCR": 1}
    assert summary["dropped"] == {"other problem type": 3}
    # clips last 4 s; the image of the OCR row has no length and stays
    summary = prepared("video-r1", min_duration=4.5, restart=True)
    assert (summary["problem_types"], summary["dropped"]) == ({"OCR": 1}, {"video too short": 4})
    summary = prepared("video-r1", min_duration=4.0, max_duration=4.0, restart=True)
    assert summary["kept"] == 5
    summary = prepared("video-r1", max_duration=3.5, restart=True)
    assert summary["dropped"] == {"video too long": 4}
    with pytest.raises(ValueError, match="length of its video is not known"):
        prepared("video-r1", max_duration=3.5, check="none", restart=True)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_pass_rates_filter_by_difficulty(prepared, tmp_path, kind):
    rates = [{"id": f"row{n}", "pass_rate": rate} for n, rate in enumerate((0.0, 0.25, 0.75, 1.0, None))]
    file = tmp_path / f"rates.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rates), file)
    else:
        layouts.write_lines(file, rates)
    summary = prepared(records=flashes(6), pass_rates=file, min_pass_rate=0.25, max_pass_rate=0.9)
    rows = load_rows(str(prepared.out), "train")
    assert (rows["id"], rows["pass_rate"]) == (["row1", "row2"], [0.25, 0.75])
    assert summary["dropped"] == {"no pass rate": 2, "pass rate too low": 1, "pass rate too high": 1}


def test_pass_rates_of_the_data_set_itself(prepared):
    file = prepared.source / "39Krelease.parquet"
    options = {"pass_rates": file, "pass_rate_columns": ("qid", "PassRate_7BBase"), "max_pass_rate": 0.5}
    prepared.source.mkdir()
    records = layouts.virl39k_records()
    records[1]["PassRate_7BBase"] = 1.0
    layouts.write_virl39k(prepared.source, [], [], records)
    assert prepared("virl39k", records=records, **options)["dropped"] == {"pass rate too high": 1}
    assert ids(prepared.out) == ["made-1"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": "a", "rate": 1}], "has columns id, rate and no 'pass_rate'"),
        ([{"id": "a", "pass_rate": 1.5}], r"pass_rate of a is 1\.5; a share"),
        ([{"id": "a", "pass_rate": "1"}], "pass_rate of a is '1'"),
        ([{"id": "a", "pass_rate": 1.0}, {"id": "a", "pass_rate": 0.5}], r"a has the rates 1\.0 and 0\.5"),
    ],
)
def test_pass_rates_that_cannot_be_read_are_named(tmp_path, rows, words):
    layouts.write_lines(tmp_path / "rates.jsonl", rows)
    with pytest.raises(ValueError, match=words):
        read_pass_rates(tmp_path / "rates.jsonl", "id", "pass_rate")
    with pytest.raises(ValueError, match=r"is a \.csv file"):
        read_pass_rates(tmp_path / "rates.csv", "id", "pass_rate")


def test_an_id_is_kept_once(prepared):
    rows = flashes(3)
    rows[2]["id"] = "row0"
    for shard_size in (1, 100):
        assert prepared(records=rows, shard_size=shard_size, restart=True)["dropped"] == {"id seen before": 1}
        assert ids(prepared.out) == ["row0", "row1"]


def test_malformed_records_stop_or_are_dropped(prepared):
    rows = flashes(3)
    rows[1]["answer"] = "many"
    with pytest.raises(RecordError, match=r"record 2 \(id row1\).*'many' does not suit problem_type 'numerical'"):
        prepared(records=rows)
    summary = prepared(records=rows, malformed="drop")
    assert summary["dropped"] == {"malformed": 1}
    assert "row1" in summary["examples"]["malformed"]
    assert ids(prepared.out) == ["row0", "row2"]


@pytest.mark.parametrize("shard_size", [1, 2, 100])
def test_limit_keeps_the_first_rows(prepared, shard_size):
    rows = flashes(6)
    rows[0]["video"] = "nowhere.mp4"
    summary = prepared(records=rows, limit=3, shard_size=shard_size)
    assert ids(prepared.out) == ["row1", "row2", "row3"]
    assert (summary["records"], summary["dropped"]) == (4, {"media missing": 1})


def test_nothing_left_is_an_error(prepared):
    with pytest.raises(ValueError, match=r"No row is left of 2 records: 2 media missing \(row row0: .*x\.mp4"):
        prepared(records=flashes(2, video="x.mp4"))
    assert not (prepared.out / "data").exists()


# Resuming


class StopError(Exception):
    """Stands in for a machine that crashes."""


@pytest.mark.parametrize("chunk", [0, 1, 2])
@pytest.mark.parametrize("moment", ["before its rows", "before its tally", "before its end"])
def test_an_interrupted_run_resumes_and_gives_the_same(prepared, monkeypatch, chunk, moment):
    rows = flashes(6)
    rows[1]["video"] = "nowhere.mp4"
    rows[4]["id"] = "row0"
    save, finish, done = SplitFolder.save_chunk, run_module._Worker._finished, []

    def stop(self, number, kept, tally):
        if number != chunk or moment == "before its end":
            return save(self, number, kept, tally)
        if moment == "before its tally":
            save(self, number, kept[:1], tally)
            self._draft(number, "json").unlink()
        raise StopError

    def down(*args):
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(SplitFolder, "save_chunk", stop)
        patch.setattr(SplitFolder, "publish", down)
        with pytest.raises(StopError):
            prepared(records=rows, shard_size=2)
    with pytest.raises(ValueError, match="'train' is not finished"):
        load_rows(str(prepared.out), "train")

    monkeypatch.setattr(run_module._Worker, "_finished", lambda self, row: done.append(row["id"]) or finish(self, row))
    summary = prepared(records=rows, shard_size=2)
    # the chunks keep rows 0 | 2, 3 | 5; those before the interruption are not processed again
    left = [["row0"], ["row2", "row3"], ["row5"]][chunk:] if moment != "before its end" else []
    assert done == [name for kept in left for name in kept]
    assert ids(prepared.out) == ["row0", "row2", "row3", "row5"]
    assert (summary["records"], summary["dropped"]) == (6, {"media missing": 1, "id seen before": 1})
    assert sorted(path.name for path in (prepared.out / ".prepare/train").iterdir()) == [
        "finished.json",
        "options.json",
    ]
    assert len(list((prepared.out / "data").iterdir())) == 3


def test_a_finished_run_is_not_done_again(prepared, monkeypatch):
    first = prepared(records=flashes(2))
    monkeypatch.setattr(run_module, "_Worker", None)
    assert prepared(records=flashes(2)) == first


def test_changed_options_are_refused_or_start_again(prepared):
    prepared(records=flashes(3))
    with pytest.raises(ValueError, match=r"options\.limit was None and is 1; options\.template was"):
        prepared(limit=1, template="boxed", records=flashes(3))
    with pytest.raises(ValueError, match=r"options\.video\.fps was 2\.0 and is 1\.0"):
        prepared(video=VideoSettings(fps=1.0), records=flashes(3))
    with pytest.raises(ValueError, match="files was"):
        prepared(records=flashes(4))  # another file
    assert len(ids(prepared.out)) == 3
    prepared(records=flashes(4), limit=1, template="boxed", restart=True)
    assert ids(prepared.out) == ["row0"]


def test_options_may_change_while_there_is_nothing_to_lose(prepared, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run_module._Worker, "chunk", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepared(records=flashes(3))
    prepared(records=flashes(3), limit=1)
    assert ids(prepared.out) == ["row0"]


def test_a_run_that_stopped_at_a_malformed_record_resumes_without_it(prepared, monkeypatch):
    rows = flashes(4)
    rows[2]["answer"] = "many"
    with pytest.raises(RecordError, match="record 3"):
        prepared(records=rows, shard_size=2)
    convert, seen = run_module._Worker._converted, []
    monkeypatch.setattr(
        run_module._Worker, "_converted", lambda self, record: seen.append(record.number) or convert(self, record)
    )
    assert prepared(records=rows, shard_size=2, malformed="drop")["dropped"] == {"malformed": 1}
    assert (seen, ids(prepared.out)) == ([3, 4], ["row0", "row1", "row3"])


def test_a_folder_with_other_things_is_refused(prepared):
    prepared.out.mkdir()
    (prepared.out / "README.md").write_text("mine")
    with pytest.raises(ValueError, match="holds something else"):
        prepared(records=flashes(1))
    assert (prepared.out / "README.md").read_text() == "mine"


def test_templates_are_written_once(prepared):
    prepared("video-r1", template="video_r1")
    rows = load_rows(str(prepared.out), "train", prompt_template="video_r1")
    text = rows[1]["prompt"][0]["content"][1]["text"]
    assert text.count("<think>") == 1
    assert text.endswith("write only a number, such as 42 or 3.14.")
    with pytest.raises(ValueError, match="prepared with the prompt template 'video_r1'"):
        load_rows(str(prepared.out), "train", prompt_template="boxed")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"check": "all"}, "check is 'all'; one of none, exists, decode"),
        ({"malformed": "skip"}, "malformed is 'skip'"),
        ({"limit": 0}, "limit is 0"),
        ({"problem_types": ("math",)}, "unknown problem type 'math'"),
        ({"template": "think"}, "did you mean 'think_answer'"),
        ({"min_duration": 2.0, "max_duration": 1.0}, "min_duration is 2.0, above max_duration 1.0"),
        ({"max_pass_rate": 0.5}, "need pass_rates"),
        ({"pass_rates": Path("a"), "min_pass_rate": 0.9, "max_pass_rate": 0.5}, "0 <= min_pass_rate"),
    ],
)
def test_wrong_options_are_named(options, words):
    with pytest.raises(ValueError, match=words):
        PrepareOptions(**options)


def test_a_split_that_is_not_published_is_named(prepared):
    prepared("next-qa")
    with pytest.raises(ValueError, match="NExT-QA has splits train, val, test; 'dev' was asked for"):
        prepare("next-qa", Source(prepared.source, "dev"), prepared.out)
    with pytest.raises(ValueError, match=r"has splits \['val'\]; 'train' was asked for"):
        load_rows(str(prepared.out), "train")


def test_state_is_plain_json(prepared):
    prepared(records=flashes(1))
    options = json.loads((prepared.out / ".prepare/train/options.json").read_text())
    assert options["data_set"] == "jsonl"
    assert options["options"]["video"]["fps"] == 2.0
