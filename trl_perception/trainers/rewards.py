"""Rewards in training: a fault in one process stops all of them, and what is not finite follows `on_nonfinite`."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn
from trl.trainer.utils import get_callable_name

from ..batch import Rollout
from ..media import sample_name
from ..rewards import RewardError
from ..rewards.checked import checked
from .distributed import over_processes


class RewardChecks:
    """Holds reward functions to their contract and stops processes together.

    Args:
        timeout: most seconds of a call, or None.
        skips: whether a group with a reward that is not finite is left out, instead of an error.
    """

    def __init__(self, *, timeout: float | None, skips: bool):
        self.timeout, self.skips = timeout, skips
        self._faults: list[Exception] = []

    def wrap(self, reward_funcs: Callable | str | list | None) -> list | None:
        """The same rewards for TRL; those that are functions are checked at every call."""
        if reward_funcs is None:
            return None
        listed = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        names = [get_callable_name(reward) for reward in listed if callable(reward)]
        options = {"timeout": self.timeout, "keep_nonfinite": self.skips, "faults": self._faults, "taken": names}
        return [
            checked(reward, **options) if callable(reward) and not isinstance(reward, nn.Module) else reward
            for reward in listed
        ]

    def stop_together(self, accelerator: Accelerator) -> None:
        """Raise on every process when a reward function failed on any; each error has the text of the first that failed."""
        faults, self._faults[:] = list(self._faults), []
        failed = over_processes(accelerator, float(len(faults))).nonzero()[:, 0].tolist()
        if not failed:
            return
        texts = gather_object([str(faults[0]) if faults else ""])  # the launcher ends the others at the first that ends
        if faults:
            raise faults[0]
        raise RewardError(
            f"A reward function failed on process(es) {', '.join(map(str, failed))}, and this process stops with them: "
            f"{texts[failed[0]]}"
        )

    def leave_out_nonfinite(
        self, rewards: Tensor, rollout: Rollout, reward_funcs: Sequence, names: Sequence[str], count: int, process: int
    ) -> int:
        """Groups with a reward that is not finite: an error, or no part in statistics and loss.

        A whole group goes: completions are compared within it, and one of them is unknown.

        Args:
            rewards: (B of all processes,K), changed in place: NaN for the groups that are left out.
            count: G. process: the index of this process.
        Returns: the completions of all processes with such a reward.
        """
        of_models = torch.tensor([isinstance(reward, nn.Module) for reward in reward_funcs], device=rewards.device)
        # NaN of a function is a reward that does not apply; a model's always does.
        bad = (rewards.isinf() | (rewards.isnan() & of_models)) & ~rollout.left_out.bool().unsqueeze(1)
        if not bad.any():
            return 0
        own = [
            f"{name} for {sample_name(row, index)}"
            for index, (row, of_row) in enumerate(zip(rollout.rows, rollout.local(bad, process), strict=True))
            for name, is_bad in zip(names, of_row.tolist(), strict=True)
            if is_bad
        ]
        if not self.skips:
            found = _not_finite(gather_object(own))
            raise ValueError(f"{found}. A finite number is wanted; on_nonfinite='skip' leaves such groups out.")
        found = _not_finite(own) if own else "rewards on another process are not finite"
        if own:
            warnings.warn(f"Left out (on_nonfinite='skip'): the groups of {found}", stacklevel=2)
        gone = bad.any(1).view(-1, count).any(1).repeat_interleave(count)
        rewards[gone] = torch.nan
        rollout.left_out = torch.maximum(rollout.left_out, gone.to(rollout.left_out))
        pairs = zip(rollout.prompts, rollout.local(gone, process).tolist(), strict=True)
        left = {id(prompt): replace(prompt, left_out=found) for prompt, is_gone in pairs if is_gone}
        rollout.prompts = [left.get(id(prompt), prompt) for prompt in rollout.prompts]
        return int(bad.any(1).sum())


def require_scored(rewards: Tensor, rollout: Rollout, names: Sequence[str]) -> None:
    """Errors: ValueError for completions to which no reward applies."""
    unscored = rewards.isnan().all(dim=1) & ~rollout.left_out.bool()
    if unscored.any():
        raise ValueError(
            f"Every reward function ({', '.join(names)}) returned None for {int(unscored.sum())} of {len(rewards)} completions. At "
            "least one must apply to each row: check the rows' problem_type, or add a reward that applies to all."
        )


def name_of_accuracy(trainer: Any) -> str:
    """The reward that is the accuracy: `accuracy_reward` of the configuration, or the one with "accuracy" in its name."""
    names, wanted, method = trainer.reward_func_names, trainer.args.accuracy_reward, trainer._name
    found = [name for name in names if (name == wanted if wanted else "accuracy" in name)]
    if len(found) == 1:
        return found[0]
    raise ValueError(
        f"{method} needs the accuracy reward alone to tell successes from failures, and among the rewards {names} "
        f"{'none' if not found else len(found)} {'is ' + repr(wanted) if wanted else 'has accuracy in its name'}. "
        "Set accuracy_reward to the name of one of them."
    )


def _not_finite(names: Sequence[str]) -> str:
    return f"rewards that are not finite: {', '.join(names[:5])}" + f" and {len(names) - 5} more" * (len(names) > 5)
