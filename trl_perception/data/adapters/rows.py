"""Builds a row from the parts of a record."""

import math
import re
from collections.abc import Sequence
from string import ascii_uppercase
from typing import Any

from ...rewards import PROBLEM_TYPES, check_solution, option_letter
from ...rewards.solutions import without_tags
from ..templates import BY_TYPE
from .record import Record

KNOWN_TYPES = tuple(dict.fromkeys((*BY_TYPE, *PROBLEM_TYPES)))  # types of templates or of the accuracy reward
_TAGS = re.compile(r"(<image>|<video>)")


def make_row(
    record: Record,
    *,
    name: str,
    question: str,
    problem_type: str,
    solution: str,
    options: Sequence[str] = (),
    videos: Sequence[Any] = (),
    images: Sequence[Any] = (),
    strict_tags: bool = True,
    **columns: Any,
) -> dict[str, Any]:
    """Build a row: one user turn with media, question and options, and the columns that rewards read.

    Placeholders replace the `<image>` and `<video>` tags of the question; without tags media come first, videos before
    images. Options without letters get letters. Answer tags are removed from a solution; a multiple-choice solution
    becomes its letter.

    Args:
        name: the row's id, unique in the data set.
        videos, images: paths, or the bytes of encoded images.
        strict_tags: whether a tag without media of its kind is an error; else it is text.
        columns: more columns, such as `time_spans` and `duration`.
    Errors: RecordError if tags and media differ in number, or the solution does not fit its problem type.
    """
    options = lettered(options)
    solution = without_tags(str(solution)).strip()
    if problem_type == "multiple choice":
        solution = _letter(record, solution, options)
        question = "\n".join([question, *options])
    row = {
        "id": name,
        "prompt": [{"role": "user", "content": _content(record, question, len(videos), len(images), strict_tags)}],
        "videos": list(videos),
        "images": list(images),
        "problem_type": problem_type,
        "solution": solution,
        "options": options,
        **columns,
    }
    if not solution:
        raise record.wrong("the solution is empty.")
    if problem_type in PROBLEM_TYPES:
        try:  # the reward's own check: a solution that it cannot read would stop a run halfway
            check_solution(problem_type, solution, options or None)
        except ValueError as error:
            raise record.wrong(str(error)) from error
    return row


def lettered(options: Sequence[str]) -> list[str]:
    """Return options as "A. red": unchanged if each starts with its own letter, else with letters added."""
    pairs = list(zip(ascii_uppercase, options, strict=False))
    if all(re.match(rf"\(?{letter}\s*[).:]", option) for letter, option in pairs):
        return list(options)
    return [f"{letter}. {option}" for letter, option in pairs]


def checked_spans(record: Record, spans: Any) -> list[list[float]]:
    """Validate [[start, end], ...] in seconds and round to milliseconds. Errors: RecordError for any other value."""
    if not isinstance(spans, list) or not all(
        isinstance(span, list) and len(span) == 2 and all(map(is_seconds, span)) and span[0] < span[1] for span in spans
    ):
        raise record.wrong(f"time spans are {spans!r}; [[start, end], ...] in seconds with start < end are wanted.")
    return [[round(float(time), 3) for time in span] for span in spans]


def is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


def _letter(record: Record, solution: str, options: list[str]) -> str:
    if not 2 <= len(options) <= len(ascii_uppercase):
        raise record.wrong(f"a multiple-choice record needs 2 to {len(ascii_uppercase)} options, found {len(options)}.")
    letter = option_letter(solution, options)
    if letter is None or letter not in ascii_uppercase[: len(options)]:
        raise record.wrong(f"solution {solution!r} picks none of its {len(options)} options.")
    return letter


def _content(record: Record, question: str, videos: int, images: int, strict: bool) -> list[dict[str, str]]:
    held = {"<video>": videos, "<image>": images}
    parts = [part for part in _TAGS.split(question) if part.strip()]
    tags = [part for part in parts if part in held and (strict or held[part])]
    if not tags:
        placeholders = [{"type": "video"}] * videos + [{"type": "image"}] * images
        return [*placeholders, {"type": "text", "text": question.strip()}]
    if any(tags.count(tag) != count for tag, count in held.items()):
        raise record.wrong(
            f"the question has {tags.count('<video>')} <video> and {tags.count('<image>')} <image> tags for {videos} "
            f"videos and {images} images."
        )
    return [{"type": part[1:-1]} if part in tags else {"type": "text", "text": part.strip("\n")} for part in parts]
