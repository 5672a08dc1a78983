"""The data of a step: a rollout of completions, its groups, and the micro-batches of the updates.

Shapes: B rows (completions) of a process, G completions of a prompt, P prompt tokens, T completion tokens, K rewards.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .data.training_checks import refuse_media_lost
from .media import MEDIA_COLUMNS, PreparedPrompt, VisualInputs
from .media.visual_inputs import UNKNOWN_MEDIA
from .transfer import to_device

REPEATED = "repeated"  # left out of an evaluation whose last batch it fills


class Scores(NamedTuple):
    """Output of a scoring forward: log-probs (B,T), entropies (B,T) and the load-balancing loss of experts, or None."""

    logps: Tensor
    entropies: Tensor | None = None
    aux_loss: Tensor | None = None


@dataclass
class Rollout:
    """One rollout on this process: B completions with their rows and prompts.

    Args:
        rows: B dataset rows as they were given.
        prompts: B prepared prompts; the rows of a group share one object.
        left_out: (B of all processes,) float, 1 where the sample is left out.
        rewards_per_func: (B,K) float, NaN where a reward does not apply; (0,) until the rewards are computed.
        scores: what TRL scored the rollout with, in its order: the old policy if it is needed, then the reference.
        unusable: prompts of all processes whose media could not be used.
        prompt_ids, completion_ids: B lists of token ids; empty until they are sampled.
        counterfactuals: name -> for each group its completions under a view of its prompt, or None.
    """

    rows: list[Mapping[str, Any]]
    prompts: list[PreparedPrompt]
    left_out: Tensor
    rewards_per_func: Tensor = field(default_factory=lambda: torch.zeros(0))
    scores: list["Scores"] = field(default_factory=list)
    unusable: float = 0.0
    prompt_ids: Sequence[Sequence[int]] = ()
    completion_ids: Sequence[Sequence[int]] = ()
    counterfactuals: dict[str, list["Group | None"]] = field(default_factory=dict)

    def counterfactuals_of(self, group: int) -> dict[str, "Group"]:
        """The completions of a group's prompt under views, by name, without the views that its prompt does not have."""
        of_group = {name: groups[group] for name, groups in self.counterfactuals.items()}
        return {name: found for name, found in of_group.items() if found is not None}

    @property
    def trl_rows(self) -> list[dict[str, Any]]:
        """The rows for TRL: prompts without image and video objects, no media columns (both are prepared here)."""
        return [
            {**{key: value for key, value in row.items() if key not in MEDIA_COLUMNS}, "prompt": prompt.logged}
            for row, prompt in zip(self.rows, self.prompts, strict=True)
        ]

    def local(self, values: Tensor, process: int) -> Tensor:
        """Returns the part of one process of values (B of all processes,...)."""
        return values[process * len(self.rows) : (process + 1) * len(self.rows)]

    @property
    def visuals(self) -> list[VisualInputs | None]:
        """The visual inputs of each row."""
        return [prompt.visual for prompt in self.prompts]

    @property
    def row_scale(self) -> Tensor:
        """Number of rows / number of rows that are not left out; converts a mean over the former into one over the latter."""
        return len(self.left_out) / (1 - self.left_out).sum().clamp(min=1)


class PromptsOfTRL:
    """Takes the place of a `PromptPreparer` where TRL tokenizes the prompts (tools, environments, other processors).

    Args:
        processor: the trainer's, for the errors.
    """

    placeholder_ids: Mapping[str, int] = MappingProxyType({})

    def __init__(self, processor: Any):
        self.processor = processor

    def __call__(self, rows: Sequence[Mapping[str, Any]], *, on_unusable: str = "error") -> list[PreparedPrompt]:
        """Errors: ValueError for media that TRL would lose."""
        refuse_media_lost(rows, self.processor)
        return [unprepared(row) for row in rows]


def unprepared(row: Mapping[str, Any]) -> PreparedPrompt:
    """A prompt that TRL tokenizes, without visual inputs: whether it has images shows in TRL's batch."""
    text_only = VisualInputs(sample="text", token_types=torch.zeros(0, dtype=torch.long))
    prompt = row.get("prompt")
    return PreparedPrompt(row, prompt, prompt, [], visual=text_only)


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
        advantages: (G,) float, NaN until they are formed.
        counterfactuals: name -> completions of the same prompt under a view of it, see `sample_counterfactuals`.
    """

    prompt: PreparedPrompt
    prompt_ids: Tensor
    completion_ids: Tensor
    attention_mask: Tensor
    completion_mask: Tensor
    rewards: dict[str, Tensor]
    advantages: Tensor
    counterfactuals: dict[str, "Group"] = field(default_factory=dict)

    @property
    def visual(self) -> VisualInputs:
        """The prompt's visual inputs.

        Errors: ValueError where TRL prepared the prompt's images, so that they are not known here.
        """
        if self.prompt.visual is None:
            raise ValueError(UNKNOWN_MEDIA)
        return self.prompt.visual


def complete_groups(
    rollout: Rollout, output: "MicroBatch", num_generations: int, reward_names: Sequence[str]
) -> Iterator[tuple[slice, Group]]:
    """Yields the groups of a rollout and their rows in its batch, without the groups that are left out."""
    for start in range(0, len(rollout.prompts), num_generations):
        rows, prompt = slice(start, start + num_generations), rollout.prompts[start]
        if prompt.left_out:
            continue
        if "pixel_values" in output:  # TRL's, of all prompts together
            prompt = replace(prompt, visual=None)
        group = Group(
            prompt=prompt,
            prompt_ids=output["prompt_ids"][start, -len(rollout.prompt_ids[start]) :],
            completion_ids=output["completion_ids"][rows],
            attention_mask=output["completion_mask"][rows],
            completion_mask=output.loss_mask[rows],
            rewards=dict(zip(reward_names, rollout.rewards_per_func[rows].unbind(1), strict=True)),
            advantages=output["advantages"][rows],
            counterfactuals=rollout.counterfactuals_of(start // num_generations),
        )
        yield rows, group


def sampled_group(
    prompt: PreparedPrompt,
    prompt_ids: Sequence[int],
    completions: Sequence[Sequence[int]],
    rewards: Tensor,
    reward_names: Sequence[str],
    counterfactuals: Mapping[str, Group] = MappingProxyType({}),
) -> Group:
    """A group before its advantages are formed: the completions of one prompt and their rewards (G,K)."""
    ids, device = [torch.tensor(of_one) for of_one in completions], rewards.device
    mask = to_device(pad_sequence([torch.ones_like(of_one) for of_one in ids], batch_first=True), device)
    return Group(
        prompt=prompt,
        prompt_ids=to_device(torch.tensor(prompt_ids), device),
        completion_ids=to_device(pad_sequence(ids, batch_first=True), device),
        attention_mask=mask,
        completion_mask=mask.bool(),
        rewards=dict(zip(reward_names, rewards.unbind(1), strict=True)),
        advantages=rewards.new_full((len(ids),), torch.nan),
        counterfactuals=dict(counterfactuals),
    )


def scored_groups(rollout: Rollout, num_generations: int, reward_names: Sequence[str]) -> Iterator[tuple[slice, Group]]:
    """Yields the groups of a rollout with their rows once rewards are there, without the groups that are left out."""
    for start in range(0, len(rollout.prompts), num_generations):
        rows, prompt = slice(start, start + num_generations), rollout.prompts[start]
        if not prompt.left_out:
            sampled = rollout.prompt_ids[start], rollout.completion_ids[rows], rollout.rewards_per_func[rows]
            others = rollout.counterfactuals_of(start // num_generations)
            yield rows, sampled_group(prompt, *sampled, reward_names, others)


class MicroBatch(dict[str, Any]):
    """The B rows of one update on one process: the dictionary that TRL's loss and [`penalty`] read.

    Entries of TRL: `prompt_ids`, `prompt_mask` (B,P) left-padded, `completion_ids`, `completion_mask` (B,T) right-padded,
    `advantages` (B,), or (B,T) once tokens have weights, and where they exist `tool_mask`, `old_per_token_logps`,
    `ref_per_token_logps` (B,T). Entries of this package: `visual_inputs` (a list of B), `row_scale`, `sample`, `group` (a
    list of B, where the credit waits for the update's forward), `token_weights` (B,T), `logps` (B,T, in [`penalty`] alone),
    `tokens_per_micro_batch`,
    `completions_per_micro_batch`, and the lists of B that [`rollout_signals`] made.
    """

    @classmethod
    def of(cls, inputs: dict[str, Any]) -> "MicroBatch":
        """Wraps a dictionary; returns a `MicroBatch` unchanged."""
        return inputs if isinstance(inputs, cls) else cls(inputs)

    @property
    def input_ids(self) -> Tensor:
        """(B,P+T)."""
        return torch.cat([self["prompt_ids"], self["completion_ids"]], dim=1)

    @property
    def attention_mask(self) -> Tensor:
        """(B,P+T)."""
        return torch.cat([self["prompt_mask"], self["completion_mask"]], dim=1)

    @property
    def loss_mask(self) -> Tensor:
        """(B,T) bool: the tokens that the policy is trained on. It excludes padding, masked truncated completions, tokens of
        tools, and samples that are left out.
        """
        return (self["completion_mask"] * self.get("tool_mask", 1)).bool()

    @property
    def loss_counts(self) -> Tensor:
        """(2,) int: the tokens in [`loss_mask`], and the completions that have any."""
        per_completion = self.loss_mask.sum(1)
        return torch.stack([per_completion.sum(), (per_completion > 0).sum()])

    def keep_in_loss(self, mask: Tensor) -> None:
        """Restricts [`loss_mask`] to `mask` (B,T). Other tokens lose their KL term and their part of the denominator as well."""
        self["tool_mask"] = self.get("tool_mask", 1) * mask.long()

    def take_groups(self, num_generations: int) -> list[tuple[slice, Group]]:
        """Removes and returns the groups that wait for their credit, with their rows."""
        of_rows = self.pop("group")
        starts = range(0, len(of_rows), num_generations)
        groups = [(slice(start, start + num_generations), of_rows[start]) for start in starts]
        return [(rows, group) for rows, group in groups if group is not None]

    def signal(self, name: str) -> list[Tensor | None]:
        """Returns a signal of the rollout for each row; None for rows whose groups are left out."""
        return self.get(name) or [None] * len(self["completion_ids"])


def loss_mask(inputs: Mapping[str, Any]) -> Tensor:
    """See [`MicroBatch.loss_mask`]."""
    return MicroBatch.of(inputs).loss_mask


def means_per_micro_batch(batches: Sequence[MicroBatch], processes: int) -> dict[str, float]:
    """`tokens_per_micro_batch` and `completions_per_micro_batch` of an optimisation step.

    Args:
        batches: its micro-batches on one process; `in_loss` has their counts, summed over processes.
    """
    shares = len(batches) * processes
    return {
        f"{what}_per_micro_batch": (sum(batch["in_loss"][what] for batch in batches) or 1) / shares
        for what in ("tokens", "completions")
    }


def whole_groups(batches: Sequence[dict[str, Any]], num_generations: int) -> list[MicroBatch]:
    """Returns the same micro-batches with the rows of each group side by side.

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
    return [MicroBatch({key: column[i] for key, column in columns.items()}) for i in range(len(batches))]


def prompt_for_rewards(prompt: PreparedPrompt) -> Any:
    """A prompt as rewards get it: media in place; strings of a data set without media as they were given, as in TRL."""
    given = prompt.row["prompt"]
    if prompt.left_out or isinstance(given, str) or any(column in prompt.row for column in MEDIA_COLUMNS):
        return prompt.messages
    return prompt.messages if any(isinstance(message.get("content"), list) for message in given if message) else given


def are_groups(prompt_ids: Sequence[Sequence[int]], size: int) -> bool:
    """Whether every `size` neighbours have one prompt; an environment may write a different one for each."""
    firsts = [prompt_ids[index - index % size] for index in range(len(prompt_ids))]
    return len(prompt_ids) % size == 0 and prompt_ids == firsts
