"""Reward functions by name, with optional parameters."""

import ast
import importlib
import inspect
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

from trl_perception.rewards.accuracy import accuracy_reward, boxed_accuracy_reward
from trl_perception.rewards.choice import require_partial_credit
from trl_perception.rewards.format import answer_format_reward, boxed_format_reward, format_reward
from trl_perception.rewards.grounding import box_iou_reward, temporal_iou_reward
from trl_perception.rewards.reading import require_answer_reading
from trl_perception.rewards.shaping import LengthWindow, repetition, soft_overlong
from trl_perception.rewards.text import thinking_tags

PARAMETERS = {
    "answer_reading": require_answer_reading,
    "thinking_tag": thinking_tags,
    "partial_credit": require_partial_credit,
}
"""Parameter of a key of `REWARDS` -> check of its value."""

REWARDS: dict[str, Callable] = {
    "accuracy": accuracy_reward,
    "boxed_accuracy": boxed_accuracy_reward,
    "format": format_reward,
    "answer_format": answer_format_reward,
    "boxed_format": boxed_format_reward,
    "temporal_iou": temporal_iou_reward,
    "box_iou": box_iou_reward,
}
"""Name in a recipe -> reward function."""

REWARD_FACTORIES: dict[str, Callable[..., Callable]] = {
    "length_window": LengthWindow,
    "soft_overlong": soft_overlong,
    "repetition": repetition,
}
"""Name in a recipe -> function that makes a reward function from parameters."""

_COMMA = re.compile(r",(?![^(]*\))")  # commas outside parentheses


def get_reward(name: str) -> Callable:
    """Return the reward function that a recipe names.

    "accuracy" or "accuracy(answer_reading='exact')": a key of `REWARDS`; "length_window" or
    "length_window(low=100, high=400)": a key of `REWARD_FACTORIES`, with constants as keyword arguments;
    "package.module.function", or "package.module.factory(size=3)" for your own function that makes the reward function.

    Raises: ValueError for any other name, or parameters that do not parse or are not accepted; ImportError for a path
        whose module cannot be imported or lacks the function; TypeError if the result is not callable.
    """
    path, parameters = _parsed(name)
    if path in REWARDS:
        return partial(REWARDS[path], **_allowed(path, parameters)) if parameters else REWARDS[path]
    if path in REWARD_FACTORIES:
        return _made(name, REWARD_FACTORIES[path], parameters or {})
    found = _imported(path)
    return found if parameters is None else _made(name, found, parameters)


def split_names(given: str | Sequence[str]) -> list[str]:
    """["a,b", "c(low=1, high=2)"] -> ["a", "b", "c(low=1, high=2)"]: split at commas outside parentheses."""
    texts = [given] if isinstance(given, str) else given
    return [name.strip() for text in texts for name in _COMMA.split(text) if name.strip()]


def _allowed(path: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Check the parameters of a key of `REWARDS`. Errors: ValueError unless it takes them and their values are valid."""
    taken = [key for key in PARAMETERS if key in inspect.signature(REWARDS[path]).parameters]
    if unknown := sorted(set(parameters) - set(taken)):
        raise ValueError(
            f"reward {path!r} takes {', '.join(taken) or 'no parameters'}, found {unknown[0]!r}. Leave it out."
        )
    for key, value in parameters.items():
        PARAMETERS[key](value)
    return parameters


def _parsed(name: str) -> tuple[str, dict[str, Any] | None]:
    """Split a name from its parameters; these are None if there are no parentheses."""
    path, opened, _ = name.partition("(")
    if not opened:
        return name, None
    try:
        call = ast.parse(name.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError("only keyword parameters are read")
        if ast.unparse(call.func) != path.strip():
            raise ValueError("one pair of parentheses is wanted, at the end")
        return path.strip(), {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"reward {name!r} does not parse ({error}). Parameters are constants given by keyword, "
            "'length_window(low=320, high=512)'; quote the whole in a YAML list, where a comma ends an entry."
        ) from error


def _made(name: str, factory: Callable, parameters: dict[str, Any]) -> Callable:
    try:
        inspect.signature(factory).bind(**parameters)
    except TypeError as error:
        raise ValueError(
            f"reward {name!r}: {error}. Its parameters are {inspect.signature(factory)}, such as "
            f"'{name.partition('(')[0]}(name=value)'."
        ) from error
    reward = factory(**parameters)
    if not callable(reward):
        raise TypeError(f"reward {name!r} made a {type(reward).__name__}, not a function. Correct the path.")
    return reward


def _imported(name: str) -> Callable:
    module_name, _, attribute = name.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in name.split(".")):
        known = [*REWARDS, *REWARD_FACTORIES]
        nearest = get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise ValueError(
            f"unknown reward {name!r}; did you mean {nearest!r}? Known: {', '.join(known)}. "
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
