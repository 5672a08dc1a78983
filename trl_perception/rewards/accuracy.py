"""Accuracy rewards: one rule per problem type."""

from functools import partial
from typing import Any

from trl_perception.rewards.rules import PROBLEM_TYPES, scores_of
from trl_perception.rewards.text import extract_answer, extract_boxed

__all__ = ["PROBLEM_TYPES", "accuracy_reward", "boxed_accuracy_reward"]


def accuracy_reward(
    prompts: list,
    completions: list,
    completion_ids: list | None = None,
    *,
    answer_reading: str = "lenient",
    partial_credit: bool = False,
    **columns: Any,
) -> list[float]:
    """Score each completion's `<answer>` in [0, 1] against the row's solution, by the row's problem type.

    multiple choice:     1 where both pick the same option, else 0 (see `option_letter`)
    numerical:           1 where both numbers are equal to 2 decimals, or those of the solution (see `equal_quantities`)
    regression:          1 - |answer - solution| / |solution|, at least 0 (see `relative_accuracy`)
    OCR:                 1 - word error rate, at least 0 (see `word_accuracy`)
    free-form:           1 where both texts are equal but for case, spaces and punctuation, else 0 (see `bare_words`)
    free text:           mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L (see `rouge`)
    mathematics:         1 where both expressions have one value, else 0 (see `equal_expressions`)
    temporal grounding:  temporal IoU of the spans (see `temporal_iou`)
    box grounding, spatial grounding:  IoU of the boxes (see `box_iou`)

    A completion whose answer cannot be read scores 0.0. If a solution is a list, an answer may match any of its values;
    for grounding the list is the span or the box.

    Args: columns: `solution`, plain or inside answer tags, or numbers; `problem_type`, a key of `PROBLEM_TYPES`;
        `options`, the option texts of a multiple-choice row, None for other rows. Without that column only letters are
        read. Other columns are ignored; answer_reading: "lenient" removes decoration that cannot change the meaning
        (see `undress`) and reads the forms that models write, "exact" requires the answer alone; partial_credit: for a
        multiple-choice solution with several right options, a list, scores the share of them that is named (see `overlap`;
        arXiv:2505.24718), where by default any one of them scores 1.
    Raises: ValueError if a required column is missing, a problem type is unknown, or a solution cannot be read or is
        not one of its options; ImportError if the package that scores a row's problem type is not installed.
    Source: arXiv:2503.21776 (Video-R1), accuracy reward. Differs: "3" equals "3.0"; "3,5" is not a number; option texts
        and marked letters count; free-form is an exact match, and what the paper calls free-form is free text here.
    """
    options = {"partial_credit": partial_credit}
    return scores_of("accuracy_reward", extract_answer, completions, columns, answer_reading, **options)


def boxed_accuracy_reward(
    prompts: list,
    completions: list,
    completion_ids: list | None = None,
    *,
    answer_reading: str = "lenient",
    thinking_tag: str = "think",
    partial_credit: bool = False,
    **columns: Any,
) -> list[float]:
    r"""Apply `accuracy_reward` to the single `\boxed{...}` after each completion's thinking (see `extract_boxed`).

    Args: thinking_tag: name of the tags around the thinking.
    """
    extract = partial(extract_boxed, thinking_tag=thinking_tag)
    options = {"partial_credit": partial_credit}
    return scores_of("boxed_accuracy_reward", extract, completions, columns, answer_reading, **options)
