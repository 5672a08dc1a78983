"""Dynamic sampling: groups whose completions all earn the same teach nothing, and are replaced by groups of other prompts."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.functional import pad

from ..batch import Rollout

if TYPE_CHECKING:
    from .grpo_video_trainer import GRPOVideoTrainer

SPREAD = 1e-6  # of rewards, below which they count as equal


def refill(trainer: "GRPOVideoTrainer", rollout: Rollout, output: dict[str, Any]) -> tuple[Rollout, dict[str, Any]]:
    """Replace groups without spread of rewards by groups of other prompts, for a bounded number of rounds.

    Every process samples as many groups in a round as the one that lacks most, so that all make the same calls.

    Metrics: `dynamic_sampling/rounds`, `dynamic_sampling/refilled` and `dynamic_sampling/left`, groups of all processes.
    Source: DAPO, arXiv:2503.14476, section 3.2. Differs: rounds are bounded; groups of the first sample that have a spread
        are all kept.
    """
    count, accelerator, over_processes = trainer.num_generations, trainer.accelerator, trainer._over_processes
    refilled = rounds = 0
    lacking = without_spread(rollout, trainer.reward_weights, count)
    padding = dict.fromkeys(("prompt_ids", "completion_ids"), trainer._tokenizer.pad_token_id) | {"tool_mask": 1}
    while rounds < trainer.args.dynamic_sampling_rounds:
        most = int(over_processes(len(lacking)).max())
        if most == 0:
            break
        rounds += 1
        seed = (trainer.args.seed, trainer.state.global_step, trainer._step, rounds)
        rows = drawn_rows(len(trainer.train_dataset), most, accelerator.process_index, accelerator.num_processes, seed)
        with trainer._forwards.as_chosen():
            fresh = trainer._sample([trainer.train_dataset[row] for row in rows for _ in range(count)])
        useless = without_spread(fresh[0], trainer.reward_weights, count)
        pairs = list(zip(lacking, (group for group in range(most) if group not in useless), strict=False))
        rollout, output = replaced((rollout, output), fresh, pairs, count, padding)
        refilled += len(pairs)
        lacking = lacking[len(pairs) :]
    trained = output["completion_mask"] * output.get("tool_mask", 1)
    output["num_items_in_batch"] = accelerator.gather(trained.sum()).sum()
    rollout.left_out = over_processes(*(float(bool(prompt.left_out)) for prompt in rollout.prompts))
    for name, value in {"refilled": refilled, "left": len(lacking)}.items():
        trainer._metrics["train"][f"dynamic_sampling/{name}"].append(over_processes(value).sum().item())
    trainer._metrics["train"]["dynamic_sampling/rounds"].append(float(rounds))
    return rollout, output


def refuse_dynamic_sampling(dataset: Any, *, trl_prepares: bool) -> None:
    """Errors: ValueError where other prompts cannot be drawn, or their media cannot be put beside the first ones."""
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
    kept: tuple[Rollout, dict[str, Any]],
    fresh: tuple[Rollout, dict[str, Any]],
    pairs: Sequence[tuple[int, int]],
    num_generations: int,
    padding: Mapping[str, int],
) -> tuple[Rollout, dict[str, Any]]:
    """A rollout some groups of which are another's: prompts are padded on the left, everything else on the right.

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

    output = dict(old_output)
    for name in old_output.keys() | new_output.keys():
        parts = [output_of.get(name) for output_of in (old_output, new_output)]
        if all(part is None for part in parts) or not all(isinstance(part, Tensor | None) for part in parts):
            continue
        if any(part is not None and part.ndim == 0 for part in parts):
            continue  # a scalar of the whole batch, which the caller counts anew
        whole = [
            torch.ones_like(of_one["completion_ids"]) if part is None else part  # TRL's mask where nothing is masked
            for part, of_one in zip(parts, (old_output, new_output), strict=True)
        ]
        output[name] = torch.cat(_alike(name, whole, padding.get(name, 0)))[rows.to(whole[0].device)]
    rewards = torch.cat([old.rewards_per_func, new.rewards_per_func])[rows.to(old.rewards_per_func.device)]
    rollout = Rollout(of_rows(old.rows, new.rows), of_rows(old.prompts, new.prompts), old.left_out, rewards)
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
