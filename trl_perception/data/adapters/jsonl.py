"""Your own data, one JSON object a line:

    {"id": "17", "question": "How many flashes?", "video": "clips/17.mp4", "problem_type": "numerical", "answer": "3"}

- `question`; `<image>` and `<video>` in it say where media of the row stand, without them media go first.
- `answer`, with or without answer tags: a letter or an option's text for multiple choice, a number, words, or
  "2.0 to 3.5" for temporal grounding.
- `problem_type`: a key of `trl_perception.rewards.PROBLEM_TYPES`.
- `options`: a list of texts, for multiple choice alone.
- `video` or `videos`, `image` or `images`: a path or a list of paths, from the file's folder or absolute. None is fine.
- `id`: the line's number where it is missing. `time_spans`: [[start, end], ...] in seconds, where known.
"""

from typing import Any

from .adapter import Adapter
from .record import Record
from .rows import KNOWN_TYPES, checked_spans, make_row
from .source import Source, read_jsonl

FIELDS = frozenset(
    ["id", "question", "answer", "problem_type", "options", "video", "videos", "image", "images", "time_spans"],
)


def jsonl_row(record: Record, source: Source) -> dict[str, Any]:
    """A row of the layout above; fields that it does not know are refused. Errors: RecordError."""
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
    paths = [record.text(kind)] if single is not None else record.texts(f"{kind}s", optional=True)
    return [source.medium(path) for path in paths]


JSONL = Adapter(
    title="JSONL",
    layout="SPLIT.jsonl with question, answer, problem_type, options, video(s), image(s)",
    files=lambda source: [source.file(f"{source.split}.jsonl")],
    read=read_jsonl,
    row=jsonl_row,
)
