"""Validates the results of reward functions: one finite number, or None, for each completion."""

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from numbers import Real
from typing import Any

from trl.trainer.utils import get_callable_name, is_async_callable

from .calls import Caught, call, call_async, row_name
from .logged import with_free_names


def checked(
    reward: Callable,
    *,
    timeout: float | None = None,
    keep_nonfinite: bool = False,
    faults: list[Exception] | None = None,
    taken: Sequence[str] = (),
) -> Callable:
    """Wrap a reward function so that it rejects results that GRPO would misread.

    TRL reads NaN as "not applicable", and fails far from the cause on a result that is not a list. Here a result must
    be a sequence with one entry per completion, each a finite number or None (not applicable to this row).

    Args:
        timeout: maximum seconds of a call; None for no limit.
        keep_nonfinite: whether to return NaN and infinity as `math.inf`, for a caller that leaves such samples out.
        faults: a list that collects errors instead of raising them; the rewards are then zeros that must not be used.
            Processes that score together thus reach the next collective call, and stop together.
        taken: names that `log_extra` and `log_metric` reject besides the reserved ones: those of the reward functions.

    Errors: TypeError or ValueError naming the function, what it returned and for which completion; RewardError if it
        raises or exceeds the timeout.
    """
    name = get_callable_name(reward)

    def verified(rewards: Any, arguments: Mapping[str, Any]) -> list[float | None]:
        return _verified(name, rewards, arguments, keep_nonfinite)

    def kept(caught: Caught, arguments: Mapping[str, Any]) -> list[float]:
        if faults is None:
            raise caught.error
        faults.append(caught.error)
        return [0.0] * len(arguments["completions"])

    if is_async_callable(reward):

        async def scored(**arguments):
            with Caught() as caught:
                return verified(await call_async(name, reward, with_free_names(arguments, taken), timeout), arguments)
            return kept(caught, arguments)

    else:

        def scored(**arguments):
            with Caught() as caught:
                return verified(call(name, reward, with_free_names(arguments, taken), timeout), arguments)
            return kept(caught, arguments)

    scored = wraps(reward)(scored)
    scored.__name__ = name  # a partial or an instance has no name
    return scored


def _verified(name: str, rewards: Any, arguments: Mapping[str, Any], keep_nonfinite: bool) -> list[float | None]:
    completions = len(arguments["completions"])
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
        if value is None or (isinstance(value, Real) and (_is_finite(value) or keep_nonfinite)):
            continue
        raise ValueError(
            f"Reward function '{name}' returned {value!r} for completion {index} ({row_name(arguments, index)}); a finite "
            "number is wanted, or None where the reward does not apply."
        )
    return [value if value is None or _is_finite(value) else math.inf for value in rewards]


def _is_finite(value: Real) -> bool:
    """Whether a float can hold the value: `math.isfinite` raises for an integer or a fraction that is too large."""
    return abs(value) <= sys.float_info.max


def distinct(names: Sequence[str]) -> list[str]:
    """Make names unique by appending a number to repeated ones: metrics, groups and records use them as keys."""
    names_so_far: list[str] = []
    for name in names:
        number, own = 1, name
        while own in names_so_far:
            number += 1
            own = f"{name}_{number}"
        names_so_far.append(own)
    return names_so_far
