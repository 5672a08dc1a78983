"""Time spans: reading them from text, their overlap, and the reward made of it."""

import math
import re
from collections.abc import Sequence
from typing import Any

from trl_perception.rewards.columns import require_column
from trl_perception.rewards.text import completion_text, extract_answer, solution_text

TEMPORAL_GROUNDING = "temporal grounding"

Span = tuple[float, float]

# Applied to text with single spaces. Every repetition is bounded, so a long text costs linear time.
_TIME = r"(?:(?:[0-9]{1,3}:[0-5]?[0-9]|[0-9]{1,3}):[0-5]?[0-9]|[0-9]{1,7})(?:\.[0-9]{1,20})?"
_UNIT = r"(?: ?s(?:ec(?:ond)?s?)?)?"
# Outside brackets a comma separates only before a space: "1,234" is one number.
_SEPARATOR = r" ?(?:to|until|[-–—~]|(?(1),|,(?= ))) ?"
_SPAN = re.compile(rf"([\[(] ?)?(?<![\w.:-])({_TIME}){_UNIT}{_SEPARATOR}({_TIME}){_UNIT}(?![\w%]|[.:][0-9])")
# What may not stand beside the spans: further numbers, and units other than seconds.
_FOREIGN = re.compile(r"\d|%|\b(?:ms|m|mins?|minutes?|h|hrs?|hours?|frames?)\b")


def parse_spans(text: str) -> list[Span]:
    """The spans that a text states, in seconds: "2.0 to 3.5", "2.0-3.5 s", "[2.0, 3.5]", "00:12 to 00:15".

    Several spans may stand side by side, and words around them do not matter ("from 2 to 3 and from 5 to 6 seconds").
    Clock times are m:ss or h:mm:ss. The list is empty, for the whole text, where any number is not part of a span, a
    unit is not the second, or a span does not run forward from zero or later.
    """
    text = " ".join(text.casefold().split())
    if _FOREIGN.search(_SPAN.sub(" ", text)):
        return []
    spans = [(_seconds(match[2]), _seconds(match[3])) for match in _SPAN.finditer(text)]
    return spans if all(start < end for start, end in spans) else []


def temporal_iou(predicted: Sequence[Sequence[float]], target: Sequence[Sequence[float]]) -> float:
    """|P and T| / |P or T|, where P and T are the unions of the predicted and of the target spans.

    Args: predicted, target: [start, end] spans in one unit, in any order; they may overlap. Either may be empty.
    Returns: a float in [0, 1]; 0.0 where both unions have no length.
    Raises: ValueError where a span is not two finite numbers with start <= end.
    """
    predicted, target = _merge(predicted), _merge(target)
    shared, p, t = 0.0, 0, 0
    while p < len(predicted) and t < len(target):
        (p_start, p_end), (t_start, t_end) = predicted[p], target[t]
        shared += max(0.0, min(p_end, t_end) - max(p_start, t_start))
        if p_end < t_end:
            p += 1
        else:
            t += 1
    union = sum(end - start for start, end in predicted) + sum(end - start for start, end in target) - shared
    return min(1.0, shared / union) if union > 0 else 0.0


def temporal_iou_reward(
    prompts: list,
    completions: list,
    completion_ids: list | None = None,
    *,
    solution: list | None = None,
    problem_type: list[str] | None = None,
    **columns: Any,
) -> list[float | None]:
    """Temporal IoU of the spans in the answer and those in `solution`; None where the row asks for something else.

    TRL leaves a None out of the reward. An answer without readable spans scores 0.0 (see `parse_spans`).

    Args: solution: spans as text, plain or inside answer tags, or as a list; problem_type: "temporal grounding" marks
        the rows to score.
    Raises: ValueError where a column is missing, or the solution of a row to score holds no span.
    """
    solution = require_column("solution", solution, completions, "temporal_iou_reward")
    problem_type = require_column("problem_type", problem_type, completions, "temporal_iou_reward")
    scores: list[float | None] = []
    for row, (completion, wanted, kind) in enumerate(zip(completions, solution, problem_type, strict=True)):
        if kind != TEMPORAL_GROUNDING:
            scores.append(None)
            continue
        target = parse_spans(solution_text(wanted))
        if not target:
            raise ValueError(
                f"row {row} of the batch: solution {wanted!r} holds no time span such as '2.0 to 3.5'. "
                "Mend or drop the row in the dataset."
            )
        scores.append(temporal_iou(parse_spans(extract_answer(completion_text(completion)) or ""), target))
    return scores


def _seconds(time: str) -> float:
    seconds = 0.0
    for part in time.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _merge(spans: Sequence[Sequence[float]]) -> list[Span]:
    """The same union as sorted, disjoint spans."""
    merged: list[Span] = []
    for span in spans:
        if len(span) != 2 or not all(math.isfinite(time) for time in span) or span[0] > span[1]:
            raise ValueError(f"a span is [start, end], finite, with start <= end; found {span!r}.")
    for start, end in sorted((start, end) for start, end in spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
