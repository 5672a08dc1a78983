"""Scores completions with reward functions, called as in training."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from trl import is_conversational
from trl.trainer.utils import is_async_callable

from ..media import PreparedPrompt
from ..rewards import get_reward, temporal_iou_reward
from ..rewards.checked import checked
from ..rewards.temporal import TEMPORAL_GROUNDING
from .generate import Completion

TEMPORAL_IOU = "temporal_iou"
NOT_COLUMNS = ("prompt", "completion", "completion_ids")


def reward_functions(names: Sequence[str], rows: Dataset) -> dict[str, Callable]:
    """Return the reward functions by name, plus temporal IoU if rows ask for time spans."""
    functions = {name: checked(get_reward(name)) for name in names}
    if "problem_type" in rows.column_names and TEMPORAL_GROUNDING in rows.unique("problem_type"):
        functions[TEMPORAL_IOU] = checked(temporal_iou_reward)
    return functions


def score(
    functions: Mapping[str, Callable],
    rows: Sequence[Mapping[str, Any]],
    prompts: Sequence[PreparedPrompt],
    completions: Sequence[Sequence[Completion]],
) -> list[dict[str, list[float | None]]]:
    """Return {reward: K scores} for each of B rows; None if a reward does not apply.

    Args: rows, prompts: B; completions: B times K.
    """
    samples = [(row, prompt, c) for row, prompt, of_row in zip(rows, prompts, completions, strict=True) for c in of_row]
    arguments = {
        "prompts": [prompt.messages for _, prompt, _ in samples],
        "completions": [_as_trl_does(row, completion.text) for row, _, completion in samples],
        "completion_ids": [completion.ids for _, _, completion in samples],
        **{key: [row[key] for row, _, _ in samples] for key in rows[0] if key not in NOT_COLUMNS},
        # Arguments that TRL's trainer passes beside the columns; there is no log here.
        "log_extra": lambda *_: None,
        "log_metric": lambda *_: None,
    }
    scores: list[dict[str, list[float | None]]] = [{} for _ in rows]
    for name, function in functions.items():
        values = asyncio.run(function(**arguments)) if is_async_callable(function) else function(**arguments)
        taken = iter(None if value is None else float(value) for value in values)
        for of_row, own in zip(scores, completions, strict=True):
            of_row[name] = [next(taken) for _ in own]
    return scores


def _as_trl_does(row: Mapping[str, Any], text: str) -> str | list[dict[str, str]]:
    return [{"role": "assistant", "content": text}] if is_conversational({"prompt": row["prompt"]}) else text
