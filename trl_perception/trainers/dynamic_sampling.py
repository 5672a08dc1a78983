"""Dynamic sampling: groups whose completions all earn the same teach nothing, and are replaced by groups of other prompts."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import pad

from ..batch import MicroBatch, Rollout
from .distributed import over_processes

SPREAD = 1e-6  # of rewards, below which they count as equal
Sampled = tuple[Rollout, MicroBatch]


@dataclass(frozen=True)
class DynamicSampling:
    """Replaces groups without spread of rewards by groups of other prompts, for a bounded number of rounds.

    Args:
        sample: rows -> a rollout and its batch; every process calls it equally often.
        dataset: the training data that prompts are drawn from.
        num_generations: G. reward_weights: (K,). rounds: most rounds a rollout.
        pad_token_id: what token ids are padded with.

    Source: DAPO, arXiv:2503.14476, section 3.2. Differs: rounds are bounded; groups of the first sample that have a spread
        are all kept.
    """

    sample: Callable[[list[Mapping[str, Any]]], Sampled]
    accelerator: Accelerator
    dataset: Dataset
    num_generations: int
    reward_weights: Tensor
    rounds: int
    pad_token_id: int

    def __call__(self, sampled: Sampled, seed: tuple[int, ...]) -> tuple[Sampled, dict[str, float]]:
        """Refill a rollout. Every process samples as many groups in a round as the one that lacks most.

        Args:
            seed: what the draw of prompts depends on, the same on every process.
        Returns: the rollout and its batch, and `dynamic_sampling/rounds`, `dynamic_sampling/refilled` and
            `dynamic_sampling/left` (groups of all processes).
        """
        count, accelerator = self.num_generations, self.accelerator
        refilled = rounds = 0
        lacking = without_spread(sampled[0], self.reward_weights, count)
        padding = dict.fromkeys(("prompt_ids", "completion_ids"), self.pad_token_id) | {"tool_mask": 1}
        while rounds < self.rounds and (most := int(over_processes(accelerator, len(lacking)).max())):
            rounds += 1
            processes = accelerator.process_index, accelerator.num_processes
            rows = drawn_rows(len(self.dataset), most, *processes, (*seed, rounds))
            fresh = self.sample([self.dataset[row] for row in rows for _ in range(count)])
            useless = without_spread(fresh[0], self.reward_weights, count)
            pairs = list(zip(lacking, (group for group in range(most) if group not in useless), strict=False))
            sampled = replaced(sampled, fresh, pairs, count, padding)
            refilled += len(pairs)
            lacking = lacking[len(pairs) :]
        rollout, output = sampled
        output["num_items_in_batch"] = accelerator.gather(output.loss_mask.sum()).sum()
        rollout.left_out = over_processes(accelerator, *(float(bool(prompt.left_out)) for prompt in rollout.prompts))
        counts = over_processes(accelerator, refilled, len(lacking)).view(-1, 2).sum(0).tolist()
        return sampled, {
            "dynamic_sampling/rounds": float(rounds),
            "dynamic_sampling/refilled": counts[0],
            "dynamic_sampling/left": counts[1],
        }


def refuse_dynamic_sampling(dataset: Any, *, trl_prepares: bool) -> None:
    """Errors: ValueError if other prompts cannot be drawn, or TRL prepares their media."""
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"dynamic_sampling draws further prompts by their number, and the training data are a {type(dataset).__name__}. "
            "Load them as a Dataset (streaming=False), or set dynamic_sampling=False."
        )
    if trl_prepares:
        raise ValueError(
            "dynamic_sampling is not possible where TRL prepares the prompts (tools, environments, processors without grids). "
            "Set dynamic_sampling=False."
        )


def without_spread(rollout: Rollout, reward_weights: Tensor, num_generations: int) -> list[int]:
    """The local groups whose weighted rewards are all equal, and those that are left out.

    Args:
        reward_weights: (K,); rewards that do not apply count nothing.
        num_generations: G: group i is rows i*G to i*G+G-1.
    """
    rewards = (rollout.rewards_per_func * reward_weights.to(rollout.rewards_per_func)).nansum(1)
    spread = rewards.view(-1, num_generations)
    equal = spread.max(1).values - spread.min(1).values < SPREAD
    left_out = torch.tensor([bool(p.left_out) for p in rollout.prompts[::num_generations]], device=equal.device)
    return (equal | left_out).nonzero()[:, 0].tolist()


def drawn_rows(size: int, count: int, process: int, processes: int, seed: tuple[int, ...]) -> list[int]:
    """`count` rows of a dataset of `size` for one process, distinct over all processes where there are enough rows.

    Args:
        seed: what the draw depends on, the same on every process.
    """
    digest = hashlib.sha256(repr(seed).encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    wanted = count * processes
    order = torch.cat([torch.randperm(size, generator=generator) for _ in range(-(-wanted // size))])
    return order[process * count : (process + 1) * count].tolist()


def replaced(
    kept: Sampled,
    fresh: Sampled,
    pairs: Sequence[tuple[int, int]],
    num_generations: int,
    padding: Mapping[str, int],
) -> Sampled:
    """Replaces groups of a rollout by groups of another one; pads prompts on the left, everything else on the right.

    Args:
        kept, fresh: two rollouts with TRL's outputs.
        pairs: (group of `kept` that goes, group of `fresh` that takes its place).
        padding: what tensors are padded with by name, 0 for others.
    """
    (old, old_output), (new, new_output) = kept, fresh
    rows = torch.arange(len(old.prompts))
    for gone, instead in pairs:
        group = torch.arange(num_generations)
        rows[gone * num_generations + group] = len(old.prompts) + instead * num_generations + group
    order = rows.tolist()

    def of_rows(ours: Any, theirs: Any) -> Any:
        both = [*ours, *theirs]
        return [both[row] for row in order]

    output = MicroBatch(old_output)
    for name in old_output.keys() | new_output.keys():
        parts = [output_of.get(name) for output_of in (old_output, new_output)]
        if all(part is None for part in parts) or not all(isinstance(part, Tensor | None) for part in parts):
            continue
        if any(part is not None and part.ndim == 0 for part in parts):
            continue  # a scalar of the whole batch, which the caller counts again
        whole = [
            torch.ones_like(of_one["completion_ids"]) if part is None else part  # TRL's mask where nothing is masked
            for part, of_one in zip(parts, (old_output, new_output), strict=True)
        ]
        output[name] = torch.cat(_alike(name, whole, padding.get(name, 0)))[rows.to(whole[0].device)]
    rewards = torch.cat([old.rewards_per_func, new.rewards_per_func])[rows.to(old.rewards_per_func.device)]
    groups = [row // num_generations for row in order[::num_generations]]
    of_views = {name: [*theirs, *new.counterfactuals[name]] for name, theirs in old.counterfactuals.items()}
    rollout = Rollout(
        of_rows(old.rows, new.rows),
        of_rows(old.prompts, new.prompts),
        old.left_out,
        rewards,
        prompt_ids=of_rows(old.prompt_ids, new.prompt_ids),
        completion_ids=of_rows(old.completion_ids, new.completion_ids),
        counterfactuals={name: [both[group] for group in groups] for name, both in of_views.items()},
    )
    return rollout, output


def _alike(name: str, tensors: Sequence[Tensor], value: int) -> list[Tensor]:
    """(B_i,W_i) of different width, padded to the largest; (B_i,) as they are."""
    if tensors[0].ndim == 1:
        return list(tensors)
    width = max(tensor.size(1) for tensor in tensors)
    left = name.startswith("prompt_")
    missing = [width - tensor.size(1) for tensor in tensors]
    return [
        pad(tensor, (count, 0) if left else (0, count), value=value)
        for tensor, count in zip(tensors, missing, strict=True)
    ]
