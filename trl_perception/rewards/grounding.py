"""Rewards for grounding rows: the IoU of time spans and of boxes, None for all other rows."""

from typing import Any

from trl_perception.rewards.boxes import BOX_GROUNDING
from trl_perception.rewards.rules import scores_of
from trl_perception.rewards.temporal import TEMPORAL_GROUNDING
from trl_perception.rewards.text import extract_answer


def temporal_iou_reward(
    prompts: list,
    completions: list,
    completion_ids: list | None = None,
    *,
    answer_reading: str = "lenient",
    **columns: Any,
) -> list[float | None]:
    """Temporal IoU of the spans in the answer and those in `solution`; None for rows of other problem types.

    TRL ignores a None in the total reward. An answer without readable spans scores 0.0 (see `spans_of`).

    Args: columns: `solution`, spans as text, plain or inside answer tags, or as a list; `problem_type`, where
        "temporal grounding" marks the rows to score; answer_reading: as for `accuracy_reward`.
    Raises: ValueError if a column is missing, or the solution of a row to score holds no span.
    """
    return scores_of(
        "temporal_iou_reward", extract_answer, completions, columns, answer_reading, only=(TEMPORAL_GROUNDING,)
    )


def box_iou_reward(
    prompts: list,
    completions: list,
    completion_ids: list | None = None,
    *,
    answer_reading: str = "lenient",
    **columns: Any,
) -> list[float | None]:
    """IoU of the box in the answer and that in `solution`; None for rows of other problem types.

    TRL ignores a None in the total reward. An answer without exactly one readable box scores 0.0 (see `box_of`). Answer
    and solution must use the same unit: nothing is rescaled.

    Args: columns: `solution`, a box as text, plain or inside answer tags, or as a list; `problem_type`, where
        "box grounding" or "spatial grounding" marks the rows to score; answer_reading: as for `accuracy_reward`.
    Raises: ValueError if a column is missing, or the solution of a row to score holds no box.
    """
    return scores_of("box_iou_reward", extract_answer, completions, columns, answer_reading, only=BOX_GROUNDING)
