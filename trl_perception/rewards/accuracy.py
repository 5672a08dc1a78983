"""Is the answer right? One rule per problem type."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from trl_perception.rewards.boxes import BOX_GROUNDING, box_iou, parse_box
from trl_perception.rewards.choice import choice_letter
from trl_perception.rewards.columns import require_column
from trl_perception.rewards.mathematics import equal_expressions, read_expression
from trl_perception.rewards.numeric import read_number, read_rounded, relative_accuracy
from trl_perception.rewards.temporal import TEMPORAL_GROUNDING, parse_spans, temporal_iou
from trl_perception.rewards.text import completion_text, extract_answer, extract_boxed, solution_text
from trl_perception.rewards.wording import bare_words, rouge, separate_words, spaced_words, word_accuracy

MULTIPLE_CHOICE = "multiple choice"


@dataclass(frozen=True)
class Rule:
    """How answers of one problem type are scored.

    Args:
        wants: what an answer or a solution of that type has to hold, for errors.
        read: text (for multiple choice: text and options) -> what it says, None where it cannot be read.
        score: (found, wanted), both as read -> a score in [0, 1].
    """

    wants: str
    read: Callable[..., Any]
    score: Callable[[Any, Any], float] = lambda found, wanted: float(found == wanted)


_BOX = Rule("one box, such as '[10, 20, 30, 40]'", parse_box, box_iou)
RULES = {
    MULTIPLE_CHOICE: Rule("one option's letter, such as 'B' or 'B. red', or its exact text", choice_letter),
    "numerical": Rule("one finite number without a unit, such as '1,234.5'", read_rounded),
    "regression": Rule("one finite number without a unit, such as '1,234.5'", read_number, relative_accuracy),
    "OCR": Rule("at least one letter or digit", spaced_words, word_accuracy),
    "free-form": Rule("at least one letter or digit", bare_words),
    "free text": Rule("at least one letter or digit", separate_words, rouge),
    "mathematics": Rule(
        "one expression that math-verify reads, such as '\\frac{1}{2}'",
        read_expression,
        lambda found, wanted: float(equal_expressions(found, wanted)),
    ),
    TEMPORAL_GROUNDING: Rule("time spans, such as '2.0 to 3.5'", lambda text: parse_spans(text) or None, temporal_iou),
    **dict.fromkeys(BOX_GROUNDING, _BOX),
}
# problem type -> what an answer or a solution of that type has to hold
PROBLEM_TYPES = {name: rule.wants for name, rule in RULES.items()}


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
    regression:          1 - |answer - solution| / |solution|, at least 0 (see `relative_accuracy`)
    OCR:                 1 - word error rate, at least 0 (see `word_accuracy`)
    free-form:           1 where both texts are equal but for case, spaces and punctuation, else 0
    free text:           mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L (see `rouge`)
    mathematics:         1 where both expressions have one value, else 0 (see `equal_expressions`)
    temporal grounding:  temporal IoU of the spans (see `temporal_iou`)
    box grounding, spatial grounding:  IoU of the boxes (see `box_iou`)

    A completion whose answer cannot be read scores 0.0.

    Args: solution: plain or inside answer tags; problem_type: a key of `PROBLEM_TYPES`; options: the option texts of a
        multiple-choice row, None for other rows. The column may be left out: then only letters are read.
    Raises: ValueError where a needed column is missing, a problem type is unknown, or a solution cannot be read;
        ImportError where the package that scores a row's problem type is not installed.
    Source: arXiv:2503.21776 (Video-R1), accuracy reward. Differs: "3" equals "3.0"; "3,5" is no number; option texts
        and marked letters count; free-form is an exact match, and what the paper calls free-form is free text here.
    """
    return _scores(extract_answer, "accuracy_reward", completions, solution, problem_type, options)


def boxed_accuracy_reward(
    prompts: list,
    completions: list,
    completion_ids: list | None = None,
    *,
    solution: list | None = None,
    problem_type: list[str] | None = None,
    options: list[list[str] | None] | None = None,
    **columns: Any,
) -> list[float]:
    r"""`accuracy_reward` on each completion's one `\boxed{...}` after its thinking (see `extract_boxed`)."""
    return _scores(extract_boxed, "boxed_accuracy_reward", completions, solution, problem_type, options)


def _scores(extract, reward: str, completions, solution, problem_type, options) -> list[float]:
    solution = require_column("solution", solution, completions, reward)
    problem_type = require_column("problem_type", problem_type, completions, reward)
    options = [None] * len(completions) if options is None else options
    options = require_column("options", options, completions, reward)
    rows = enumerate(zip(completions, solution, problem_type, options, strict=True))
    return [_score(row, extract(completion_text(completion)), *values) for row, (completion, *values) in rows]


def _score(row: int, answer: str | None, solution: Any, problem_type: str, options: list[str] | None) -> float:
    if problem_type not in RULES:
        raise ValueError(
            f"row {row} of the batch: unknown problem_type {problem_type!r}; known: {', '.join(RULES)}. "
            "Rename it in the dataset, or score such rows with a reward function of your own."
        )
    if not isinstance(options, list | tuple | None):
        raise ValueError(
            f"row {row} of the batch: options must be a list of option texts or None, found {options!r}. "
            "Give the options column one text per option."
        )
    rule = RULES[problem_type]
    also = (options,) if problem_type == MULTIPLE_CHOICE else ()
    wanted = rule.read(solution_text(solution), *also)
    if wanted is None:
        raise ValueError(
            f"row {row} of the batch: solution {solution!r} does not suit problem_type {problem_type!r}, which wants "
            f"{rule.wants}. Mend or drop the row in the dataset."
        )
    found = None if answer is None else rule.read(answer, *also)
    return 0.0 if found is None else rule.score(found, wanted)
