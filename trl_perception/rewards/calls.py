"""Calls a user's reward function: errors name the function and the row, and a timeout may apply."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import Any

import torch

from .errors import RewardError
from .logged import LOGS, silent

ID_COLUMNS = ("id", "problem_id", "question_id")


class Caught:
    """Context manager that catches an error of user code and stores it in `error`, for the caller to report.

    Args: kinds: the exception classes to catch; others (Ctrl-C, an exit) propagate.
    """

    def __init__(self, kinds: type[BaseException] = Exception):
        self.kinds, self.error = kinds, None

    def __enter__(self) -> "Caught":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        self.error = error if isinstance(error, self.kinds) else None
        return self.error is not None


def call(name: str, reward: Callable, arguments: Mapping[str, Any], timeout: float | None) -> Any:
    """Return reward(**arguments).

    Args: timeout: maximum seconds, None for no limit. With a timeout the call runs in a separate daemon thread; a
        thread cannot be killed, so one that hangs remains until the process ends, and does not delay that end.
    Errors: RewardError naming the function, the row and the exception; or the function, its rows and the setting.
    """
    with Caught() as caught:
        return _within(timeout, partial(reward, **arguments), name)
    if isinstance(caught.error, _LateError):
        raise _too_late(name, arguments, timeout) from None
    row = None
    for candidate in range(len(arguments["completions"])):
        with Caught() as alone:
            _within(timeout, partial(reward, **_alone(arguments, candidate)), name)
        if type(alone.error) is type(caught.error):
            row = candidate
            break
    raise _raised(name, arguments, row, caught.error) from caught.error


async def call_async(name: str, reward: Callable, arguments: Mapping[str, Any], timeout: float | None) -> Any:
    """Await reward(**arguments), as [`call`] does. A coroutine that exceeds the timeout is cancelled.

    A coroutine that blocks without awaiting anything also blocks its timeout.
    """
    with Caught() as caught:
        return await _awaited_within(timeout, reward(**arguments))
    if isinstance(caught.error, _LateError):
        raise _too_late(name, arguments, timeout) from None
    row = None
    for candidate in range(len(arguments["completions"])):
        with Caught() as alone:
            await _awaited_within(timeout, reward(**_alone(arguments, candidate)))
        if type(alone.error) is type(caught.error):
            row = candidate
            break
    raise _raised(name, arguments, row, caught.error) from caught.error


class _LateError(Exception):
    """Our timeout, distinct from any TimeoutError that a reward raises itself."""


def _within(timeout: float | None, function: Callable[[], Any], name: str) -> Any:
    if timeout is None:
        return function()
    outcome: Future = Future()
    gradients, context = torch.is_grad_enabled(), copy_context()
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def work() -> None:
        # New threads start with gradients enabled and on the first device.
        torch.set_grad_enabled(gradients)
        if device is not None:
            torch.cuda.set_device(device)
        with Caught(BaseException) as caught:
            outcome.set_result(context.run(function))
        if caught.error is not None:
            outcome.set_exception(caught.error)

    Thread(target=work, name=f"reward {name}", daemon=True).start()
    if not wait([outcome], timeout).done:
        raise _LateError
    return outcome.result()


async def _awaited_within(timeout: float | None, awaitable: Any) -> Any:
    task = asyncio.ensure_future(awaitable)
    done, _ = await asyncio.wait({task}, timeout=timeout)
    if not done:
        task.cancel()
        raise _LateError
    return task.result()


def _alone(arguments: Mapping[str, Any], row: int) -> dict[str, Any]:
    """Return the arguments of one completion; non-column arguments are unchanged, logging functions are silenced."""
    count = len(arguments["completions"])

    def of_row(key: str, value: Any) -> Any:
        if key in LOGS:
            return silent(value)
        is_column = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == count
        return value[row : row + 1] if is_column else value

    return {key: of_row(key, value) for key, value in arguments.items()}


def _raised(name: str, arguments: Mapping[str, Any], row: int | None, error: BaseException) -> RewardError:
    if row is None:
        where = f"{_rows(arguments)}, and for none of them when called with it alone"
    else:
        where = f"completion {row}, {row_name(arguments, row)}"
    return RewardError(
        f"Reward function '{name}' raised {type(error).__name__}: {error} (for {where}). Return None where the reward does "
        "not apply, or correct the function."
    )


def _too_late(name: str, arguments: Mapping[str, Any], timeout: float | None) -> RewardError:
    return RewardError(
        f"Reward function '{name}' did not return within {timeout:g} s (for {_rows(arguments)}). Make it faster or bound "
        "what it waits for, or raise reward_timeout (None for no limit)."
    )


def _rows(arguments: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(row_name(arguments, row) for row in range(len(arguments["completions"]))))
    shown = ", ".join(names[:3])
    return f"{len(arguments['completions'])} completions of {shown}{', ...' if len(names) > 3 else ''}"


def row_name(arguments: Mapping[str, Any], row: int) -> str:
    """Return the name of a completion's row for errors: its id if it has one, else the start of its prompt."""
    for key in ID_COLUMNS:
        if arguments.get(key) is not None and arguments[key][row] is not None:
            return f"sample {arguments[key][row]}"
    if arguments.get("prompts") is None:
        return f"row {row}"
    return f"prompt {str(arguments['prompts'][row])[:80]!r}"
