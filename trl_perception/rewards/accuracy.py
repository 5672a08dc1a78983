"""Is the answer right? One rule per problem type."""

import math
import re
import unicodedata
from typing import Any

from trl_perception.rewards.choice import choice_letter
from trl_perception.rewards.columns import require_column
from trl_perception.rewards.temporal import TEMPORAL_GROUNDING, parse_spans, temporal_iou
from trl_perception.rewards.text import completion_text, extract_answer, solution_text

# problem type -> what an answer or a solution of that type has to hold
PROBLEM_TYPES = {
    "multiple choice": "one option's letter, such as 'B' or 'B. red', or its exact text",
    "numerical": "one finite number without a unit, such as '1,234.5'",
    "free-form": "at least one letter or digit",
    TEMPORAL_GROUNDING: "time spans, such as '2.0 to 3.5'",
}

_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MAX_NUMBER_LENGTH = 64


def accuracy_reward(
    prompts: list,
    completions: list,
    completion_ids: list | None = None,
    *,
    solution: list | None = None,
    problem_type: list[str] | None = None,
    options: list[list[str] | None] | None = None,
    **columns: Any,
) -> list[float]:
    """Score in [0, 1] of each completion's `<answer>` against the row's solution, by the row's problem type.

    multiple choice:     1 where both pick the same option, else 0 (see `choice_letter`)
    numerical:           1 where both numbers are equal when rounded to 2 decimals, else 0
    free-form:           1 where both texts are equal but for case, spaces and punctuation, else 0
    temporal grounding:  temporal IoU of the spans (see `temporal_iou`)

    A completion whose answer cannot be read scores 0.0.

    Args: solution: plain or inside answer tags; problem_type: a key of `PROBLEM_TYPES`; options: the option texts of a
        multiple-choice row, None for other rows. The column may be left out: then only letters are read.
    Raises: ValueError where a needed column is missing, a problem type is unknown, or a solution cannot be read.
    Source: arXiv:2503.21776 (Video-R1), accuracy reward. Differs: "3" equals "3.0"; "3,5" is no number; option texts
        and marked letters count; free-form is an exact match, not ROUGE.
    """
    solution = require_column("solution", solution, completions, "accuracy_reward")
    problem_type = require_column("problem_type", problem_type, completions, "accuracy_reward")
    if options is None:
        options = [None] * len(completions)
    options = require_column("options", options, completions, "accuracy_reward")
    rows = enumerate(zip(completions, solution, problem_type, options, strict=True))
    return [_score(row, *values) for row, values in rows]


def _score(row: int, completion: Any, solution: Any, problem_type: str, options: list[str] | None) -> float:
    if problem_type not in PROBLEM_TYPES:
        raise ValueError(
            f"row {row} of the batch: unknown problem_type {problem_type!r}; known: {', '.join(PROBLEM_TYPES)}. "
            "Rename it in the dataset, or score such rows with a reward function of your own."
        )
    if not isinstance(options, list | tuple | None):
        raise ValueError(
            f"row {row} of the batch: options must be a list of option texts or None, found {options!r}. "
            "Give the options column one text per option."
        )
    wanted = _read(solution_text(solution), problem_type, options)
    if wanted is None:
        raise ValueError(
            f"row {row} of the batch: solution {solution!r} does not suit problem_type {problem_type!r}, which wants "
            f"{PROBLEM_TYPES[problem_type]}. Mend or drop the row in the dataset."
        )
    answer = extract_answer(completion_text(completion))
    found = None if answer is None else _read(answer, problem_type, options)
    if found is None:
        return 0.0
    return temporal_iou(found, wanted) if problem_type == TEMPORAL_GROUNDING else float(found == wanted)


def _read(text: str, problem_type: str, options: list[str] | None) -> Any:
    """What the text says in terms of its problem type, or None."""
    if problem_type == "multiple choice":
        return choice_letter(text, options)
    if problem_type == "numerical":
        return _rounded_number(text)
    if problem_type == "free-form":
        return _bare_words(text)
    return parse_spans(text) or None


def _rounded_number(text: str) -> float | None:
    text = text.strip()
    if len(text) > _MAX_NUMBER_LENGTH or not _NUMBER.fullmatch(text):
        return None
    number = float(text.replace(",", ""))
    return round(number, 2) if math.isfinite(number) else None


def _bare_words(text: str) -> str | None:
    """Case-folded words with single spaces; punctuation is gone, but for marks that make a number ("-3.5", "10:30")."""
    text = unicodedata.normalize("NFC", text.casefold())
    following = text[1:] + " "
    kept = (
        char if not unicodedata.category(char).startswith("P") or (char in "-.,:/" and after.isdigit()) else " "
        for char, after in zip(text, following, strict=True)
    )
    words = " ".join("".join(kept).split())
    return words if any(char.isalnum() for char in words) else None
