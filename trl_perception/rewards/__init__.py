"""Reward functions, called as TRL calls them: f(prompts=, completions=, completion_ids=, **columns) -> list[float]."""

import importlib
from collections.abc import Callable
from difflib import get_close_matches

from trl_perception.rewards.accuracy import PROBLEM_TYPES, accuracy_reward
from trl_perception.rewards.choice import choice_letter
from trl_perception.rewards.format import answer_format_reward, format_reward
from trl_perception.rewards.temporal import parse_spans, temporal_iou, temporal_iou_reward
from trl_perception.rewards.text import completion_text, extract_answer

__all__ = [
    "PROBLEM_TYPES",
    "REWARDS",
    "accuracy_reward",
    "answer_format_reward",
    "choice_letter",
    "completion_text",
    "extract_answer",
    "format_reward",
    "get_reward",
    "parse_spans",
    "temporal_iou",
    "temporal_iou_reward",
]

REWARDS: dict[str, Callable] = {
    "accuracy": accuracy_reward,
    "format": format_reward,
    "answer_format": answer_format_reward,
    "temporal_iou": temporal_iou_reward,
}


def get_reward(name: str) -> Callable:
    """The reward function that a recipe names: a key of `REWARDS`, or a dotted path "package.module.function".

    Raises: ValueError for a name that is neither; ImportError for a path whose module does not import or lacks the
        function; TypeError for a path to something that cannot be called.
    """
    if name in REWARDS:
        return REWARDS[name]
    module_name, _, attribute = name.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in name.split(".")):
        nearest = get_close_matches(name, REWARDS, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown reward {name!r}; did you mean {nearest!r}? Known: {', '.join(REWARDS)}. "
            "A function of your own is named by its dotted path, 'package.module.function'."
        )
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ImportError(
            f"reward {name!r}: importing {module_name!r} failed: {error}. "
            "Install the package or put its folder on PYTHONPATH."
        ) from error
    if not hasattr(module, attribute):
        raise ImportError(f"reward {name!r}: module {module_name!r} has no {attribute!r}. Correct the path.")
    reward = getattr(module, attribute)
    if not callable(reward):
        raise TypeError(f"reward {name!r} is a {type(reward).__name__}, not a function. Correct the path.")
    return reward
