"""Further completions of a rollout's prompts under a view: a rollout of their own, alike in number on every process."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator
from torch import Tensor

from .batch import Group, Rollout, sampled_group
from .media import PreparedPrompt, VisualInputs
from .modeling import View


def rollout_under(
    rollout: Rollout,
    view: Callable[[PreparedPrompt], View | None],
    n: int,
    num_generations: int,
    accelerator: Accelerator,
    filler_id: int,
    encode: Callable[[VisualInputs], VisualInputs],
) -> tuple[list[int], Rollout | None]:
    """The prompts of a rollout under a view, n rows each, and to which groups they belong.

    Each process has as many rows as the one with the most; what is missing is a prompt of two tokens that is left out, so that
    every process prefills.

    Args:
        view: a prompt -> what is shown instead, or None.
        num_generations: G. filler_id: that token.
        encode: visual inputs -> the same with what is known of them, such as a frozen tower's features.
    Returns: the groups with a view, and the rollout; None where no process has any.
    Errors: ValueError for a view with positions of its own, and for n below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}; at least 1 completion of each prompt is wanted.")
    shown: dict[int, PreparedPrompt] = {}
    for group, prompt in enumerate(rollout.prompts[::num_generations]):
        seen = None if prompt.left_out else view(prompt)
        if seen is None:
            continue
        if seen.positions is not None:
            raise ValueError(
                f"{seen.visual.sample}: a view with positions of its own can be scored but not sampled under, because "
                "generation takes the model's. Make it without `model` (media_masked, frames_kept)."
            )
        shown[group] = replace(prompt, input_ids=seen.prompt_ids.tolist(), visual=encode(seen.visual))
    counts = accelerator.gather(torch.tensor([len(shown)], device=accelerator.device))
    if not (most := int(counts.max())):
        return [], None
    nothing = VisualInputs(sample="no view", token_types=torch.zeros(2, dtype=torch.long))
    filler = replace(rollout.prompts[0], input_ids=[filler_id] * 2, visual=nothing, left_out="no view of this prompt")
    groups, missing = list(shown), most - len(shown)
    prompts = [prompt for prompt in [*shown.values(), *[filler] * missing] for _ in range(n)]
    rows = [rollout.rows[group * num_generations] for group in [*groups, *[0] * missing] for _ in range(n)]
    left_out = torch.tensor([float(bool(prompt.left_out)) for prompt in prompts], device=accelerator.device)
    return groups, Rollout(rows, prompts, accelerator.gather(left_out))


def groups_under(
    rollout: Rollout, groups: Sequence[int], n: int, count: int, rewards: Tensor, reward_names: Sequence[str]
) -> list[Group | None]:
    """The completions of a rollout under a view as groups of n, one for each of the `count` groups that they belong to."""
    found: list[Group | None] = [None] * count
    for place, group in enumerate(groups):
        rows = slice(place * n, place * n + n)
        sampled = rollout.prompt_ids[rows.start], rollout.completion_ids[rows], rewards[rows]
        found[group] = sampled_group(rollout.prompts[rows.start], *sampled, reward_names)
    return found
