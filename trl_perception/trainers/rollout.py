"""From dataset rows to a rollout: prompts with their media, each prepared once, and the rows that count."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from accelerate import Accelerator
from datasets import Dataset

from ..batch import REPEATED, MicroBatch, PromptsOfTRL, Rollout
from ..media import PreparedPrompt, PromptPreparer, RowsAhead, VisualInputs
from .distributed import over_processes


class RolloutBuilder:
    """Makes a [`Rollout`] of dataset rows; the rows of a group share their prepared prompt.

    Args:
        preparer: makes prompts of rows.
        encode: visual inputs -> the same where the model is, with what is known of them, such as a frozen tower's features.
        ahead: knows the rows of the next rollouts, whose media are read while the policy is trained on this one.
        on_unusable: "error", or "skip" to leave rows out whose media cannot be used.
    """

    def __init__(
        self,
        preparer: PromptPreparer | PromptsOfTRL,
        accelerator: Accelerator,
        encode: Callable[[VisualInputs], VisualInputs],
        ahead: RowsAhead,
        *,
        on_unusable: str,
    ):
        if ahead.rollouts and isinstance(preparer, PromptsOfTRL):
            raise ValueError(
                f"media_prefetch is {ahead.rollouts}, and TRL prepares these prompts (tools, an environment, a rollout_func or a "
                "processor of another family), whose media cannot be read ahead. Set media_prefetch=0."
            )
        self.preparer, self.accelerator = preparer, accelerator
        self.encode, self.ahead, self.on_unusable = encode, ahead, on_unusable
        # Prompts that training drew, those of them that were left out, over all processes, and why on this one.
        self.drawn = self.left_out = 0
        self.reasons: list[str] = []

    def __call__(self, rows: list[Mapping[str, Any]], repeats: int, *, training: bool) -> Rollout:
        """Prepare each distinct prompt once; `repeats` rows side by side have one.

        Errors: MediaError for a row that cannot be used, ValueError for media that TRL would lose.
        """
        step = repeats if len(rows) % repeats == 0 else 1
        prompts = self.preparer(rows[::step], on_unusable=self.on_unusable)
        if (following := self.ahead.after(rows)) is not None:
            self.preparer.read_ahead([row for batch in following for row in batch[::step]])
        prompts = [replace(prompt, visual=prompt.visual and self.encode(prompt.visual)) for prompt in prompts]
        for prompt in prompts:
            if prompt.left_out:
                warnings.warn(f"Left out (on_bad_media='skip'): {prompt.left_out}", stacklevel=2)
        rollout = self._with_left_out(rows, [prompt for prompt in prompts for _ in range(step)])
        rollout.unusable = rollout.left_out.sum().item() / repeats
        if training:
            self.drawn += len(rollout.left_out) // repeats
            self.left_out += int(rollout.unusable)
            self.reasons += [prompt.left_out for prompt in prompts if prompt.left_out]
        elif (counted := self._rows_that_count(len(rows), repeats)) < len(rows):
            repeated = [replace(prompt, left_out=REPEATED) for prompt in rollout.prompts[counted:]]
            rollout.prompts[counted:] = repeated
        if not training and self.accelerator.num_processes > 1:
            rollout.left_out = self._with_left_out(rows, rollout.prompts).left_out
        return rollout

    def close(self) -> None:
        """End the processes that read media ahead."""
        if isinstance(self.preparer, PromptPreparer):
            self.preparer.loader.close()

    def require_rows_used(self, dataset: Any, *, at_the_end: bool = False) -> None:
        """Stop a run that leaves out every row: after an epoch of them, or at its end.

        Errors: ValueError with the first reason.
        """
        enough = at_the_end or (hasattr(dataset, "__len__") and self.drawn >= len(dataset))
        if enough and self.drawn and self.drawn == self.left_out:
            first = self.reasons[0] if self.reasons else "see the other processes"
            raise ValueError(
                f"All {self.drawn} prompts that were drawn were left out (on_bad_media='skip'), so that nothing was trained. The "
                f"first: {first}. Correct the data, or raise the limit that it names."
            )

    def _with_left_out(self, rows: list[Mapping[str, Any]], prompts: list[PreparedPrompt]) -> Rollout:
        left_out = over_processes(self.accelerator, *(float(bool(prompt.left_out)) for prompt in prompts))
        return Rollout(rows, prompts, left_out)

    def _rows_that_count(self, rows: int, repeats: int) -> int:
        """How many of this process's rows in an evaluation's last batch are not repetitions.

        Where the rows do not divide by the processes, accelerate fills the last batches with the first rows once more.
        """
        state, processes = self.accelerator.gradient_state, self.accelerator.num_processes
        if processes == 1 or not state.end_of_dataloader:
            return rows
        dataset = state.active_dataloader.dataset
        if not isinstance(dataset, Dataset):  # a stream, whose length nobody knows
            return rows
        in_last = len(dataset) * repeats % (rows * processes) or rows * processes
        return min(max(in_last - rows * self.accelerator.process_index, 0), rows)


def leave_out(rollout: Rollout, output: MicroBatch, accelerator: Accelerator) -> None:
    """Takes rows that are left out of the loss, and counts the remaining tokens again."""
    if not rollout.left_out.any():
        return
    keeps = 1 - rollout.local(rollout.left_out, accelerator.process_index)
    output.keep_in_loss(keeps.unsqueeze(1).expand_as(output["completion_ids"]))
    output["num_items_in_batch"] = accelerator.gather(output.loss_mask.sum()).sum()
