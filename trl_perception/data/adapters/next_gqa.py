"""NExT-GQA (arXiv:2309.01327): questions of NExT-QA with the seconds that hold the answer.

val.csv and test.csv with columns `video_id` (or `video`), `question`, `answer` (the option's text, or its number), `qid`,
`type`, `a0` to `a4`; gsub_val.json and gsub_test.json as {video: {"location": {qid: [[start, end], ...]}, "duration":
seconds, ...}}. train.csv is published without spans, so there is no train split here: use next-qa for it.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from .adapter import Adapter
from .next_qa import next_options, next_parts
from .record import Record
from .rows import checked_spans, is_seconds, make_row
from .source import Source, read_csv

SPLITS = ("val", "test")


def next_gqa_row(record: Record, source: Source) -> dict[str, Any] | None:
    """Return a multiple-choice row with `time_spans`, the seconds that hold the answer; None without spans."""
    return _row(record, source, grounding=False)


def grounding_row(record: Record, source: Source) -> dict[str, Any] | None:
    """Return a row that asks for the time spans, given question and answer; None without spans."""
    return _row(record, source, grounding=True)


def _row(record: Record, source: Source, grounding: bool) -> dict[str, Any] | None:
    parts, options = next_parts(record, source), next_options(record)
    spans, duration = _spans(record, _spans_file(source))
    if not spans:
        return None
    letter = _answer(record, options)
    extra = {"time_spans": spans, "duration": duration}
    if not grounding:
        return make_row(record, solution=letter, options=options, **parts, **extra)
    answer = next(option for option in options if option.startswith(letter)).partition(". ")[2]
    parts["problem_type"] = "temporal grounding"
    parts["question"] += f"\nThe answer is: {answer}.\nWhen does the video show this? Answer in seconds."
    return make_row(record, solution=" and ".join(f"{start} to {end}" for start, end in spans), **parts, **extra)


def _answer(record: Record, options: list[str]) -> str:
    answer = record.text("answer")
    texts = [option.partition(". ")[2] for option in options]
    if texts.count(answer) == 1:
        return "ABCDE"[texts.index(answer)]
    if answer not in ("0", "1", "2", "3", "4"):
        raise record.wrong(f"field 'answer' is {answer!r}; the text of one option, or a number from 0 to 4, is wanted.")
    return "ABCDE"[int(answer)]


def _spans(record: Record, file: Path) -> tuple[list[list[float]], float]:
    """Return the question's spans, and the clip's duration in seconds."""
    of_video = _locations(file).get(record.text("video", "video_id"))
    if of_video is None:
        return [], 0.0
    found = Record(of_video, record.number, file)
    spans = found.field("location").get(record.text("qid"), [])
    duration = found.field("duration")
    if not is_seconds(duration):
        raise found.wrong(
            f"the duration of clip {record.text('video', 'video_id')} is {duration!r}; seconds are wanted."
        )
    return checked_spans(record, spans), float(duration)


def _spans_file(source: Source) -> Path:
    folder = Source(source.folder)
    return folder.file(f"gsub_{source.split}.json", f"nextgqa/gsub_{source.split}.json")


@cache
def _locations(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def _files(source: Source) -> list[Path]:
    return [source.file(f"{source.split}.csv", f"nextgqa/{source.split}.csv"), _spans_file(source)]


_LAYOUT = "val.csv with gsub_val.json, or test.csv with gsub_test.json; clips as for next-qa"
NEXT_GQA = Adapter(
    title="NExT-GQA",
    layout=f"{_LAYOUT}; rows have time_spans",
    files=_files,
    read=read_csv,
    row=next_gqa_row,
    splits=SPLITS,
    left_out="no time spans",
)
NEXT_GQA_GROUNDING = Adapter(
    title="NExT-GQA",
    layout=f"{_LAYOUT}; rows ask for the spans",
    files=_files,
    read=read_csv,
    row=grounding_row,
    splits=SPLITS,
    left_out="no time spans",
)
