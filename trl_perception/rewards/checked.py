"""Reward functions that are held to their word: one finite number, or None, for each completion."""

import math
from collections.abc import Callable, Sequence
from functools import wraps
from numbers import Real
from typing import Any

from trl.trainer.utils import get_callable_name, is_async_callable


def checked(reward: Callable) -> Callable:
    """The same reward function, refusing results that GRPO would misread.

    TRL reads NaN as "not applicable" and fails far from the cause on a result that is no list. Here a result must be a
    sequence with one entry a completion, each a finite number or None (not applicable to this row).

    Errors: TypeError or ValueError naming the function, what it returned and for which completion.
    """
    name = get_callable_name(reward)

    if is_async_callable(reward):

        async def call(*args, **kwargs):
            return _verified(name, await reward(*args, **kwargs), len(kwargs["completions"]))

    else:

        def call(*args, **kwargs):
            return _verified(name, reward(*args, **kwargs), len(kwargs["completions"]))

    call = wraps(reward)(call)
    call.__name__ = name  # a partial or an instance has none of its own
    return call


def _verified(name: str, rewards: Any, completions: int) -> list[float | None]:
    if hasattr(rewards, "tolist"):  # tensors and arrays
        rewards = rewards.tolist()
    if not isinstance(rewards, Sequence) or isinstance(rewards, str):
        raise TypeError(
            f"Reward function '{name}' returned {type(rewards).__name__}; a list with one float (or None where the "
            f"reward does not apply) for each of the {completions} completions is wanted."
        )
    if len(rewards) != completions:
        raise ValueError(
            f"Reward function '{name}' returned {len(rewards)} rewards for {completions} completions. Return exactly "
            "one for each, None where it does not apply."
        )
    for index, value in enumerate(rewards):
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            raise ValueError(
                f"Reward function '{name}' returned {value!r} for completion {index}; a finite number is wanted, or "
                "None where the reward does not apply."
            )
    return list(rewards)
