"""Rewards in training: what goes wrong in one process stops all of them, and what is not finite follows `on_nonfinite`."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from trl import GRPOTrainer
from trl.trainer.utils import get_callable_name

from ..media.prompts import sample_name
from ..rewards import RewardError
from ..rewards.checked import checked


class Scoring(GRPOTrainer):
    """TRL's calls of reward functions for [`GRPOVideoTrainer`].

    Metrics: `nonfinite/rewards`, completions of a rollout with a NaN or infinite reward, under `on_nonfinite="skip"`.
    """

    def __init__(self, *args: Any, reward_funcs: Callable | str | list | None = None, **kwargs: Any):
        options = kwargs["args"]
        self._reward_faults: list[Exception] = []
        self._unscorable: Tensor | None = None  # (B of all processes,) of the rollout in hand, where any is
        if reward_funcs is not None:
            listed = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
            names = [get_callable_name(reward) for reward in listed if callable(reward)]
            reward_funcs = [
                checked(
                    reward,
                    timeout=options.reward_timeout,
                    keep_nonfinite=options.on_nonfinite == "skip",
                    faults=self._reward_faults,
                    taken=names,
                )
                if callable(reward) and not isinstance(reward, nn.Module)
                else reward
                for reward in listed
            ]
        super().__init__(*args, reward_funcs=reward_funcs, **kwargs)
        self.reward_func_names = distinct(self.reward_func_names)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list) -> Tensor:
        """Rewards (B of all processes,K); NaN for the groups that are left out."""
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._stop_together()
        of_models = torch.tensor([isinstance(reward, nn.Module) for reward in self.reward_funcs], device=rewards.device)
        # NaN of a function is a reward that does not apply; a model's always does.
        bad = (rewards.isinf() | (rewards.isnan() & of_models)) & ~self._rollout.left_out.bool().unsqueeze(1)
        self._unscorable = None
        if self.args.on_nonfinite == "skip":
            self._metrics[self._mode]["nonfinite/rewards"].append(bad.any(1).sum().item())
        if bad.any():
            self._leave_out(rewards, bad, inputs)
        return rewards

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if self._unscorable is not None:
            keeps = 1 - self._own(inputs).long().unsqueeze(1)
            output["tool_mask"] = output.get("tool_mask", 1) * keeps.expand_as(output["completion_ids"])
            output["row_scale"] = self._rollout.row_scale
            counted = (output["completion_mask"] * output["tool_mask"]).sum()
            output["num_items_in_batch"] = self.accelerator.gather(counted).sum()
        return output

    def _stop_together(self) -> None:
        """Raise on every process when a reward function failed on any; each error has the text of the first that failed."""
        faults, self._reward_faults[:] = list(self._reward_faults), []
        failed = self._over_processes(float(len(faults))).nonzero()[:, 0].tolist()
        if not failed:
            return
        texts = gather_object([str(faults[0]) if faults else ""])  # the launcher ends the others at the first that ends
        if faults:
            raise faults[0]
        raise RewardError(
            f"A reward function failed on process(es) {', '.join(map(str, failed))}, and this process stops with them: "
            f"{texts[failed[0]]}"
        )

    def _leave_out(self, rewards: Tensor, bad: Tensor, inputs: list[dict[str, Any]]) -> None:
        """Groups with a reward that is not finite: an error, or no part in statistics and loss.

        A whole group goes: completions are compared within it, and one of them is unknown.
        """
        rollout, count = self._rollout, self.num_generations if self.model.training else self.num_generations_eval
        start = self.accelerator.process_index * len(inputs)
        own = [
            f"{name} for {sample_name(row, index)}"
            for index, row in enumerate(inputs)
            for reward, name in enumerate(self.reward_func_names)
            if bad[start + index, reward]
        ]
        if self.args.on_nonfinite == "error":
            found = rewards_not_finite(gather_object(own))
            raise ValueError(f"{found}. A finite number is wanted; on_nonfinite='skip' leaves such groups out.")
        found = rewards_not_finite(own) if own else "rewards on another process are not finite"
        if own:
            warnings.warn(f"Left out (on_nonfinite='skip'): the groups of {found}", stacklevel=2)
        groups = bad.any(1).view(-1, count).any(1)
        self._unscorable = groups.repeat_interleave(count)
        rewards[self._unscorable] = torch.nan
        rollout.left_out = torch.maximum(rollout.left_out, self._unscorable.to(rollout.left_out))
        left = {
            id(p): replace(p, left_out=found)
            for p, gone in zip(rollout.prompts, self._own(inputs), strict=True)
            if gone
        }
        rollout.prompts = [left.get(id(prompt), prompt) for prompt in rollout.prompts]

    def _own(self, inputs: list[dict[str, Any]]) -> Tensor:
        """This process's part of the rows that are left out."""
        start = self.accelerator.process_index * len(inputs)
        return self._unscorable[start : start + len(inputs)]


def rewards_not_finite(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"rewards that are not finite: {', '.join(names[:5])}{more}"


def distinct(names: Sequence[str]) -> list[str]:
    """The same names, where one comes again with a number behind it: metrics, groups and records go by them."""
    told: list[str] = []
    for name in names:
        number, own = 1, name
        while own in told:
            number += 1
            own = f"{name}_{number}"
        told.append(own)
    return told
