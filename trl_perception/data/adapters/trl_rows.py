"""Rows in TRL's layout: a conversational `prompt`, media in columns or blocks, and the columns that rewards read."""

from collections.abc import Mapping
from typing import Any

from ...media.messages import MEDIA_COLUMNS, conversation
from ...media.paths import REMOTE
from ...media.settings import VideoSettings
from ...rewards import PROBLEM_TYPES, check_solution
from .record import Record, RecordError
from .rows import checked_spans
from .source import Source

FIELDS = frozenset(
    ["id", "prompt", *MEDIA_COLUMNS, "problem_type", "solution", "answer", "options", "time_spans"],
)


def trl_row(record: Record, source: Source) -> dict[str, Any]:
    """Convert a row of TRL's layout: `prompt` (messages), `image(s)`/`video(s)` or media inside the blocks, which may
    have their own settings, and, if rewards read them, `problem_type`, `solution` (or `answer`), `options`,
    `time_spans`.

    Media move into the columns; their placeholders and settings remain in the prompt. Errors: RecordError.
    """
    values = record.values
    if unknown := sorted(set(values) - FIELDS):
        raise record.wrong(f"unknown field {unknown[0]!r}; beside 'prompt' known are {', '.join(sorted(FIELDS))}.")
    media: dict[str, list] = {"video": [], "image": []}
    try:
        messages = conversation(values)
        prompt = [_without_media(message, media) for message in messages]
        problem_type = None if values.get("problem_type") is None else record.text("problem_type")
        solution = record.text("solution", "answer") if problem_type or _has(values, "solution", "answer") else None
        options = record.texts("options", optional=True)
        if problem_type in PROBLEM_TYPES:
            check_solution(problem_type, solution, options or None)
    except RecordError:
        raise
    except ValueError as error:
        raise record.wrong(str(error)) from error
    if not prompt:
        raise record.wrong("'prompt' is plain text; messages ([{'role': 'user', 'content': ...}]) are wanted.")
    spans = values.get("time_spans")
    return {
        "id": record.text("id") if values.get("id") is not None else f"{record.file.stem}-{record.number}",
        "prompt": prompt,
        "videos": [_located(record, source, "video", medium) for medium in media["video"]],
        "images": [_located(record, source, "image", medium) for medium in media["image"]],
        "problem_type": problem_type,
        "solution": solution,
        "options": options,
        **({} if spans is None else {"time_spans": checked_spans(record, spans)}),
    }


def _without_media(message: Mapping[str, Any], media: dict[str, list]) -> dict[str, Any]:
    """Return the message with placeholders, and append its media to their lists. Errors: ValueError."""
    if others := sorted(set(message) - {"role", "content"}):
        raise ValueError(f"a message holds {others[0]!r}; only 'role' and 'content' are kept.")
    content = []
    for block in message["content"]:
        kind = block["type"]
        if kind in media:
            VideoSettings().override(block)  # rejects keys that are not settings
            media[kind].append(block[kind])
            block = {key: value for key, value in block.items() if key != kind}
        content.append(block)
    return {"role": message["role"], "content": content}


def _located(record: Record, source: Source, kind: str, medium: Any) -> str | bytes:
    if isinstance(medium, Mapping):
        medium = medium.get("path") if medium.get("bytes") is None else medium["bytes"]
    if isinstance(medium, str) and not medium.startswith("data:"):
        return medium if medium.startswith(REMOTE) else source.medium(medium)
    if isinstance(medium, bytes) and kind == "image":
        return medium
    raise record.wrong(f"a {kind} is given as {type(medium).__name__} {str(medium)[:40]!r}; a path or URL is wanted.")


def _has(values: Mapping[str, Any], *names: str) -> bool:
    return any(values.get(name) is not None for name in names)
