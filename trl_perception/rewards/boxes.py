"""Boxes in an image: reading one from text, the overlap of two, and the reward made of it."""

import re
from collections.abc import Sequence
from typing import Any

from trl_perception.rewards.columns import require_column
from trl_perception.rewards.text import completion_text, extract_answer, solution_text

BOX_GROUNDING = ("box grounding", "spatial grounding")  # two names of one problem type

Box = tuple[float, float, float, float]

# Applied to text with single spaces. Every repetition is bounded, so a long text costs linear time.
_NUMBER = r"([0-9]{1,7}(?:\.[0-9]{1,20})?)"
_FLAT = rf"{_NUMBER} ?, ?{_NUMBER} ?, ?{_NUMBER} ?, ?{_NUMBER}"
_CORNERS = rf"[\[(] ?{_NUMBER} ?, ?{_NUMBER} ?[\])] ?,? ?[\[(] ?{_NUMBER} ?, ?{_NUMBER} ?[\])]"
_BOX = re.compile(rf"(?<![\w.,+-])(?:{_CORNERS}|{_FLAT})(?![\w%]|[.,] ?[0-9])")
_MAX_SIDE = 1e100  # so that areas do not overflow
_KEY = "bbox_2d"  # the key under which Qwen2.5-VL writes boxes


def parse_box(text: str) -> Box | None:
    """The one box that a text states, (x0, y0, x1, y1): "[10, 20, 30, 40]", "10, 20, 30, 40", "(10,20),(30,40)",
    '{"bbox_2d": [10, 20, 30, 40]}'.

    Words around it do not matter. None where there is no box or a second one, a further number, a negative or huge one
    (8 digits), or a box without area: x0 < x1 and y0 < y1 are wanted.
    """
    text = " ".join(text.replace(_KEY, " ").split())
    found = _BOX.search(text)
    if not found or any(char.isdigit() for char in text[: found.start()] + text[found.end() :]):
        return None
    x0, y0, x1, y1 = (float(number) for number in found.groups() if number)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def box_iou(predicted: Sequence[float], target: Sequence[float]) -> float:
    """|P and T| / |P or T|, the areas shared and covered by two boxes.

    Args: predicted, target: (x0, y0, x1, y1) in one unit, pixels or shares of the image.
    Returns: a float in [0, 1]; 0.0 where both have no area.
    Raises: ValueError where a box is not four numbers up to 1e100 with x0 <= x1 and y0 <= y1.
    """
    for box in (predicted, target):
        if len(box) != 4 or not all(abs(side) <= _MAX_SIDE for side in box) or box[0] > box[2] or box[1] > box[3]:
            raise ValueError(f"a box is [x0, y0, x1, y1], up to 1e100, with x0 <= x1 and y0 <= y1; found {box!r}.")
    width = max(0.0, min(predicted[2], target[2]) - max(predicted[0], target[0]))
    height = max(0.0, min(predicted[3], target[3]) - max(predicted[1], target[1]))
    shared = width * height
    union = _area(predicted) + _area(target) - shared
    return min(1.0, shared / union) if union > 0 else 0.0


def box_iou_reward(
    prompts: list,
    completions: list,
    completion_ids: list | None = None,
    *,
    solution: list | None = None,
    problem_type: list[str] | None = None,
    **columns: Any,
) -> list[float | None]:
    """IoU of the box in the answer and that in `solution`; None where the row asks for something else.

    TRL leaves a None out of the reward. An answer without one readable box scores 0.0 (see `parse_box`). Answer and
    solution have to use one unit: nothing is rescaled.

    Args: solution: a box as text, plain or inside answer tags, or as a list; problem_type: "box grounding" or "spatial
        grounding" marks the rows to score.
    Raises: ValueError where a column is missing, or the solution of a row to score holds no box.
    """
    solution = require_column("solution", solution, completions, "box_iou_reward")
    problem_type = require_column("problem_type", problem_type, completions, "box_iou_reward")
    scores: list[float | None] = []
    for row, (completion, wanted, kind) in enumerate(zip(completions, solution, problem_type, strict=True)):
        if kind not in BOX_GROUNDING:
            scores.append(None)
            continue
        target = parse_box(solution_text(wanted))
        if target is None:
            raise ValueError(
                f"row {row} of the batch: solution {wanted!r} holds no box such as '[10, 20, 30, 40]'. "
                "Mend or drop the row in the dataset."
            )
        found = parse_box(extract_answer(completion_text(completion)) or "")
        scores.append(0.0 if found is None else box_iou(found, target))
    return scores


def _area(box: Sequence[float]) -> float:
    return float(box[2] - box[0]) * float(box[3] - box[1])
