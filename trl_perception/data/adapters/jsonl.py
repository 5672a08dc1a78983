"""Your own data, one JSON object a line:

    {"id": "17", "question": "How many flashes?", "video": "clips/17.mp4", "problem_type": "numerical", "answer": "3"}

- `question`; `<image>` and `<video>` in it say where media of the row stand, without them media go first.
- `answer`, with or without answer tags: a letter or an option's text for multiple choice, a number, words, or
  "2.0 to 3.5" for temporal grounding.
- `problem_type`: a key of `trl_perception.rewards.PROBLEM_TYPES`.
- `options`: a list of texts, for multiple choice alone.
- `video` or `videos`, `image` or `images`: a path or a list of paths, from the file's folder or absolute. None is fine.
- `id`: the line's number where it is missing. `time_spans`: [[start, end], ...] in seconds, where known.

A record with a `prompt` is a row of TRL's own layout instead (`trl_rows`). JSON lists and parquet are read as well.
"""

from pathlib import Path
from typing import Any

from .adapter import Adapter
from .record import Record
from .rows import KNOWN_TYPES, checked_spans, make_row
from .source import Records, Source, read_json, read_jsonl, read_parquet
from .trl_rows import trl_row

FIELDS = frozenset(
    ["id", "question", "answer", "problem_type", "options", "video", "videos", "image", "images", "time_spans"],
)


def jsonl_row(record: Record, source: Source) -> dict[str, Any]:
    """Convert a record of the layout above, or of TRL's; unknown fields are rejected. Errors: RecordError."""
    if "prompt" in record.values:
        return trl_row(record, source)
    if unknown := sorted(set(record.values) - FIELDS):
        raise record.wrong(f"unknown field {unknown[0]!r}; known are {', '.join(sorted(FIELDS))}.")
    problem_type = record.one_of("problem_type", KNOWN_TYPES)
    name = record.text("id") if record.values.get("id") is not None else f"{record.file.stem}-{record.number}"
    spans = record.values.get("time_spans")
    return make_row(
        record,
        name=name,
        question=record.text("question"),
        problem_type=problem_type,
        solution=record.text("answer"),
        options=record.texts("options", optional=problem_type != "multiple choice"),
        videos=_media(record, source, "video"),
        images=_media(record, source, "image"),
        strict_tags=False,
        **({} if spans is None else {"time_spans": checked_spans(record, spans)}),
    )


def _media(record: Record, source: Source, kind: str) -> list[str]:
    single, several = record.values.get(kind), record.values.get(f"{kind}s")
    if single is not None and several is not None:
        raise record.wrong(f"both fields {kind!r} and '{kind}s' are set; keep one.")
    if isinstance(single, list):
        raise record.wrong(f"field {kind!r} holds a list; one path is wanted there. Several go into '{kind}s'.")
    paths = [record.text(kind)] if single is not None else record.texts(f"{kind}s", optional=True)
    return [source.medium(path) for path in paths]


def _read(file: Path) -> Records:
    return {".json": read_json, ".parquet": read_parquet}.get(file.suffix, read_jsonl)(file)


JSONL = Adapter(
    title="JSONL",
    layout="SPLIT.jsonl (.json, .parquet) with question, answer, problem_type, options, video(s), image(s), or TRL's rows",
    files=lambda source: [source.file(*(f"{source.split}{suffix}" for suffix in (".jsonl", ".json", ".parquet")))],
    read=_read,
    row=jsonl_row,
    block_settings=True,
)
