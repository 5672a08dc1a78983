"""What one rollout holds beside TRL's tensors: prepared prompts, rewards by name, groups, and their order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .media import MEDIA_COLUMNS, PreparedPrompt, VisualInputs, media_columns

REPEATED = "repeated"  # left out of an evaluation whose last batch it fills


@dataclass
class Rollout:
    """One rollout on this process: B completions with their rows and prompts.

    Args:
        rows: B dataset rows as they were given.
        prompts: B prepared prompts; the rows of a group share one object.
        left_out: (B of all processes,) float, 1 where the sample is left out.
        rewards_per_func: (B,K) float, NaN where a reward does not apply; None until the rewards are there.
        scored: log-probs and entropies (B,T) of the first model that TRL scored the rollout with; None without any.
    """

    rows: list[Mapping[str, Any]]
    prompts: list[PreparedPrompt]
    left_out: Tensor
    rewards_per_func: Tensor | None = None
    scored: tuple[Tensor, Tensor | None] | None = None

    @property
    def trl_rows(self) -> list[dict[str, Any]]:
        """The rows for TRL: prompts without image and video objects, no media columns (both are prepared here)."""
        return [
            {**{key: value for key, value in row.items() if key not in MEDIA_COLUMNS}, "prompt": prompt.logged}
            for row, prompt in zip(self.rows, self.prompts, strict=True)
        ]

    @property
    def row_scale(self) -> Tensor:
        """All rows / rows that count: turns a mean over all rows into one over those that are not left out."""
        return len(self.left_out) / (1 - self.left_out).sum().clamp(min=1)


def unprepared(row: Mapping[str, Any]) -> PreparedPrompt:
    """A prompt that TRL tokenizes itself. Its visual inputs are known only where it has no media: they are empty."""
    pure_text = not any(media_columns(row).values())
    text_only = VisualInputs(sample="text", token_types=torch.zeros(0, dtype=torch.long))
    prompt = row.get("prompt")
    return PreparedPrompt(row, prompt, prompt, [], visual=text_only if pure_text else None)


@dataclass(frozen=True, eq=False)
class Group:
    """The G completions of one prompt, complete, as the policy sampled them.

    Args:
        prompt: the prompt with its row, messages, frames and visual inputs.
        prompt_ids: (P,) int, without padding.
        completion_ids: (G,T) int, right-padded.
        attention_mask: (G,T) int, 1 where the forward attends.
        completion_mask: (G,T) bool, True on tokens that the policy is trained on.
        rewards: {name: (G,)} float, unweighted, NaN where a reward does not apply.
        advantages: (G,) float.
    """

    prompt: PreparedPrompt
    prompt_ids: Tensor
    completion_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor
    rewards: dict[str, Tensor]
    advantages: Tensor

    @property
    def visual(self) -> VisualInputs:
        """The prompt's visual inputs.

        Errors: ValueError where TRL prepared the prompt's images, so that they are not known here.
        """
        if self.prompt.visual is None:
            raise ValueError(
                "This prompt's images were prepared by TRL (a processor without grids, tools, an environment or a "
                "rollout_func), and signals that read them are not available. Use a Qwen-VL processor without those."
            )
        return self.prompt.visual


def complete_groups(
    rollout: Rollout, output: Mapping[str, Any], num_generations: int, reward_names: Sequence[str]
) -> Iterator[tuple[slice, Group]]:
    """The groups of a rollout with their rows in TRL's output, those that are left out excepted."""
    mask = loss_mask(output)
    for start in range(0, len(rollout.prompts), num_generations):
        rows, prompt = slice(start, start + num_generations), rollout.prompts[start]
        if prompt.left_out:
            continue
        group = Group(
            prompt=prompt,
            prompt_ids=output["prompt_ids"][start][output["prompt_mask"][start].bool()],
            completion_ids=output["completion_ids"][rows],
            attention_mask=output["completion_mask"][rows],
            completion_mask=mask[rows],
            rewards=dict(zip(reward_names, rollout.rewards_per_func[rows].unbind(1), strict=True)),
            advantages=output["advantages"][rows],
        )
        yield rows, group


def loss_mask(inputs: Mapping[str, Any]) -> Tensor:
    """(B,T) bool: the tokens that the policy is trained on. Padding, truncated completions that are masked, tokens of tools
    and samples that are left out are not among them.
    """
    return (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()


def loss_counts(inputs: Mapping[str, Any]) -> Tensor:
    """(2,) int: the tokens of a micro-batch that the policy is trained on, and the completions that have any."""
    per_completion = loss_mask(inputs).sum(1)
    return torch.stack([per_completion.sum(), (per_completion > 0).sum()])


def signal_of_rows(inputs: Mapping[str, Any], name: str) -> list[Tensor | None]:
    """A rollout's signal for each row of a micro-batch; None for rows, or for all of them, whose groups are left out."""
    return inputs.get(name) or [None] * len(inputs["completion_ids"])


def whole_groups(batches: Sequence[dict[str, Any]], num_generations: int) -> list[dict[str, Any]]:
    """The same micro-batches with the rows of each group side by side again.

    TRL shuffles the rows of a rollout before it cuts them into micro-batches. Here the groups keep the random order in
    which their first rows came out of that shuffle, so that the random state stays TRL's, and rows keep their order
    within a group.

    Args:
        batches: micro-batches of equal size: tensors and lists with one entry a row, scalars kept. `row` (rows,) int is
            a row's place in the rollout, where rows i*G to (i+1)*G-1 are a group.
        num_generations: G.
    """
    row = torch.cat([batch["row"] for batch in batches]).tolist()
    arrival: dict[int, int] = {}
    for index in row:
        arrival.setdefault(index // num_generations, len(arrival))
    order = sorted(range(len(row)), key=lambda place: (arrival[row[place] // num_generations], row[place]))
    size = len(order) // len(batches)

    def regroup(key: str) -> list:
        values = [batch[key] for batch in batches]
        if isinstance(values[0], Tensor) and values[0].ndim > 0:
            return list(torch.cat(values)[torch.tensor(order, device=values[0].device)].split(size))
        if isinstance(values[0], list):
            merged = [value for part in values for value in part]
            return [[merged[i] for i in order[start : start + size]] for start in range(0, len(order), size)]
        return values  # scalars and None are the same in every micro-batch

    columns = {key: regroup(key) for key in batches[0]}
    return [{key: column[i] for key, column in columns.items()} for i in range(len(batches))]
