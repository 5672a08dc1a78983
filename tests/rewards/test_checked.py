"""Checks of reward functions: what they raise, what they return, how long they take."""

import asyncio
import math
import threading

import pytest
import torch

from trl_perception.rewards import RewardError
from trl_perception.rewards.checked import checked

COLUMNS = {"prompts": ["p0", "p1", "p2"], "completions": ["a", "b", "c"], "id": ["x", "y", "z"], "log_extra": print}


def by_letter(completions, **columns):
    values = {"a": 1.0, "c": 3.0}
    return [values[completion] for completion in completions]


async def by_letter_later(completions, **columns):
    await asyncio.sleep(0)
    return by_letter(completions)


def called(reward, **arguments):
    result = reward(**{**COLUMNS, **arguments})
    return asyncio.run(result) if asyncio.iscoroutine(result) else result


@pytest.mark.parametrize("timeout", [None, 5.0])
@pytest.mark.parametrize("reward", [by_letter, by_letter_later])
def test_what_a_reward_raises_is_chained_and_names_reward_and_row(reward, timeout):
    words = rf"Reward function '{reward.__name__}' raised KeyError: 'b' \(for completion 1, sample y\)"
    with pytest.raises(RewardError, match=words) as error:
        called(checked(reward, timeout=timeout))
    assert isinstance(error.value.__cause__, KeyError)
    assert error.value.__cause__.__traceback__.tb_frame is not None
    with pytest.raises(RewardError, match=r"for completion 1, prompt 'p1'"):
        called(checked(reward, timeout=timeout), id=[None] * 3)


def test_an_error_of_the_batch_alone_names_all_its_rows():
    def compares(completions, **columns):
        if len(completions) > 1:
            raise ZeroDivisionError("no spread")
        return [0.0]

    words = r"ZeroDivisionError: no spread \(for 3 completions of sample x, sample y, sample z, and for none of them"
    with pytest.raises(RewardError, match=words):
        called(checked(compares))


def test_looking_for_the_row_does_not_write_to_the_log():
    logged = []

    def logs(completions, log_extra, **columns):
        log_extra("seen", completions)
        return by_letter(completions)

    with pytest.raises(RewardError):
        called(checked(logs), log_extra=lambda column, values: logged.append(values))
    assert logged == [["a", "b", "c"]]


def test_an_interrupt_is_no_fault_of_the_reward():
    def interrupted(completions, **columns):
        raise KeyboardInterrupt

    for timeout in (None, 5.0):
        with pytest.raises(KeyboardInterrupt):
            called(checked(interrupted, timeout=timeout, faults=[]))


def test_a_reward_that_hangs_is_left_behind():
    release = threading.Event()

    def waits(completions, **columns):
        release.wait()
        return [0.0] * 3

    words = r"'waits' did not return within 0.2 s \(for 3 completions of sample x, sample y, sample z\).*raise reward_timeout"
    with pytest.raises(RewardError, match=words):
        called(checked(waits, timeout=0.2))  # it would wait forever
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "reward waits"]
    assert thread.daemon  # it does not delay the end of the process
    release.set()
    thread.join(60)
    assert not thread.is_alive()


def test_an_async_reward_that_hangs_is_cancelled():
    ended = []

    async def hangs(completions, **columns):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append(True)

    with pytest.raises(RewardError, match=r"'hangs' did not return within 0.1 s"):
        called(checked(hangs, timeout=0.1))
    assert ended == [True]


@pytest.mark.parametrize("timeout", [None, 5.0])
def test_a_timeout_of_the_rewards_own_is_its_own(timeout):
    def asks(completions, **columns):
        raise TimeoutError("the judge did not answer")

    with pytest.raises(RewardError, match="raised TimeoutError: the judge did not answer"):
        called(checked(asks, timeout=timeout))


def test_a_deadline_changes_nothing_for_a_reward_in_time():
    def fine(completions, **columns):
        assert not torch.is_grad_enabled()
        return torch.tensor([1.0, 2.0, 3.0])

    with torch.no_grad():
        assert called(checked(fine, timeout=5.0)) == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused_or_marked(value):
    def bad(completions, **columns):
        return [0.5, value, None]

    with pytest.raises(ValueError, match=rf"'bad' returned {value} for completion 1 \(sample y\); a finite number"):
        called(checked(bad))
    assert called(checked(bad, keep_nonfinite=True)) == [0.5, math.inf, None]


@pytest.mark.parametrize("reward", [by_letter, by_letter_later, lambda completions, **columns: None])
def test_faults_can_be_collected(reward):
    faults = []
    assert called(checked(reward, faults=faults)) == [0.0, 0.0, 0.0]
    assert [type(fault) for fault in faults] in ([RewardError], [TypeError])


def test_a_number_that_no_float_holds_is_not_finite():
    def huge(completions, **columns):
        return [1.0, 10**400, 0.5]

    with pytest.raises(
        ValueError, match=r"'huge' returned 10+ for completion 1 \(sample y\); a finite number is wanted"
    ):
        called(checked(huge))
    assert called(checked(huge, keep_nonfinite=True)) == [1.0, math.inf, 0.5]


@pytest.mark.parametrize("which", ["log_extra", "log_metric"])
@pytest.mark.parametrize(
    "name",
    ["reward", "loss", "completion", "prompt", "advantage", "rewards/accuracy/mean", "eval_loss", "other_reward"],
)
def test_a_reserved_name_is_refused(which, name):
    def logs(completions, **columns):
        columns[which](**{"name" if which == "log_metric" else "column": name})
        return [0.0] * len(completions)

    written = []
    words = rf"'logs' raised ValueError: {which} was called with the name '{name}', .* \(for completion 0, sample x\)"
    with pytest.raises(RewardError, match=words):
        called(checked(logs, taken=["other_reward"]), **{which: lambda *entry: written.append(entry)})
    assert not written


def test_other_names_are_logged():
    def logs(completions, log_extra, log_metric, **columns):
        log_extra("solution", completions)
        log_metric(name="rewarded", value=0.5)
        return [0.0] * len(completions)

    written = []

    def log_metric(name, value):
        written.append((name, value))

    called(checked(logs), log_extra=lambda *e: written.append(e), log_metric=log_metric)
    assert written == [("solution", ["a", "b", "c"]), ("rewarded", 0.5)]
