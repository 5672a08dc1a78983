"""NExT-QA (arXiv:2105.08276), multiple choice: train.csv, val.csv, test.csv.

Columns `video` (or `video_id`), `question`, `answer` (the option's number, 0 to 4), `qid`, `type`, `a0` to `a4`. A clip
is <video>.mp4 in the media folder, in NExTVideo/ or in videos/; where map_vid_vidorID.json lies beside the csv, its
longer name ("1164/3238737531") is looked for as well.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from .adapter import Adapter
from .record import Record
from .rows import make_row
from .source import Source, read_csv

SPLITS = ("train", "val", "test")
FOLDERS = ("", "NExTVideo/", "videos/")


def next_qa_row(record: Record, source: Source) -> dict[str, Any]:
    """A multiple-choice row. Errors: RecordError."""
    options = next_options(record)
    answer = record.one_of("answer", [str(number) for number in range(len(options))])
    return make_row(record, solution="ABCDE"[int(answer)], options=options, **next_parts(record, source))


def next_options(record: Record) -> list[str]:
    """Return the five options with letters."""
    return [f"{letter}. {record.text(f'a{number}')}" for number, letter in enumerate("ABCDE")]


def next_parts(record: Record, source: Source) -> dict[str, Any]:
    """Return the fields that rows of NExT-QA and NExT-GQA share: name, question and clip."""
    video = record.text("video", "video_id")
    question = record.text("question")
    return {
        "name": f"{video}_{record.text('qid')}",
        "question": question if question.endswith("?") else f"{question}?",
        "problem_type": "multiple choice",
        "videos": [next_clip(record, source, video)],
    }


def next_clip(record: Record, source: Source, video: str) -> str:
    mapped = _long_names(record.file.parent / "map_vid_vidorID.json").get(video)
    names = [video] if mapped is None else [mapped, video]
    return source.medium(*(f"{folder}{name}.mp4" for name in names for folder in FOLDERS))


@cache
def _long_names(file: Path) -> dict[str, str]:
    return json.loads(file.read_text()) if file.is_file() else {}


NEXT_QA = Adapter(
    title="NExT-QA",
    layout="train.csv, val.csv or test.csv; clips as ID.mp4, NExTVideo/ID.mp4 or videos/ID.mp4",
    files=lambda source: [source.file(f"{source.split}.csv", f"nextqa/{source.split}.csv")],
    read=read_csv,
    row=next_qa_row,
    splits=SPLITS,
)
