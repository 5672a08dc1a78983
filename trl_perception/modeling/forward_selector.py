"""How a batch of rows is forwarded: one row a completion, or one packed row for those that share a prompt."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from torch import Tensor, nn

from ..media import VisualInputs
from .group_forward import group_forward, packing_unsupported_reason, shared_runs, token_ratio
from .row_forward import row_forward

logger = get_logger(__name__)

# Below it the packed row's smaller kernels eat up what the shared prompt saves (see docs/performance.md).
PAYS_FROM = 1.15


class ForwardSelector:
    """Chooses between the plain forward and the group forward, once a rollout and alike on every process.

    Args:
        model: the policy.
        mode: "on", "off", or "auto" to pack where it pays.
        refusal: a reason of the trainer's own against packing, or None.
    Errors: ValueError for `group_forward="on"` where rows cannot be packed.
    """

    def __init__(self, model: nn.Module, mode: str, refusal: str | None = None):
        self.mode = mode
        self.packs = self.mode == "on"
        self._keeps_its_choice = False
        reason = refusal or packing_unsupported_reason(model) if self.mode != "off" else None
        if reason is None:
            return
        if self.mode == "on":
            raise ValueError(f"group_forward='on' is not possible: {reason}. Set group_forward to 'auto' or 'off'.")
        self.mode = "off"
        logger.warning(f"Every completion is forwarded with its own copy of the prompt: {reason}.")

    def select(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], run: int, accelerator: Accelerator
    ) -> None:
        """Choose for one rollout, by the tokens that packing saves over all processes.

        Args:
            prompts, completions: token ids of the local rollout's rows, groups side by side.
            run: how many rows with one prompt come into a forward together.
        """
        if self.mode != "auto" or self._keeps_its_choice:
            return
        sizes = [len(ids) for ids in prompts], [len(ids) for ids in completions]
        runs = [min(run, len(prompts) - start) for start in range(0, len(prompts), run)]
        ratios = accelerator.gather(torch.tensor([token_ratio(*sizes, runs)], device=accelerator.device))
        self.packs = ratios.mean().item() >= PAYS_FROM

    @contextmanager
    def as_chosen(self) -> Iterator[None]:
        """Context manager that keeps the choice: further groups are sampled into a rollout."""
        self._keeps_its_choice = True
        try:
            yield
        finally:
            self._keeps_its_choice = False

    def packs_for(self, model: nn.Module) -> bool:
        """Whether rows are packed for this model: a teacher or a reference model may not allow it."""
        return self.packs and packing_unsupported_reason(model) is None

    def bind(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_width: int,
        visuals: Sequence[VisualInputs] | None,
        positions: Tensor | None = None,
    ) -> Callable[..., Any]:
        """What TRL calls in the model's place for these rows.

        Args:
            input_ids, attention_mask: (B,S). completion_width: T. visuals: B, or None for a text model.
            positions: (A,S) int for every row, where they are not the ones that the model takes itself.
        """
        if not self.packs_for(model):
            if visuals is None:
                return model
            return partial(row_forward, model, visuals=visuals, completion_width=completion_width, positions=positions)
        runs = shared_runs(input_ids[:, :-completion_width], attention_mask[:, :-completion_width], visuals)
        firsts = [sum(runs[:number]) for number in range(len(runs))]
        return partial(
            group_forward,
            model,
            runs=runs,
            visuals=[None if visuals is None else visuals[row] for row in firsts],
            completion_width=completion_width,
            positions=positions,
        )
