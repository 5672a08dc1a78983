"""Losses and gradients that are not finite: the run stops with a dump to replay, or leaves the step out.

One flag a process is exchanged at the end of each optimisation step, after its last backward pass and before clipping, so
that all processes stop, or go on, together.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor, nn
from trl import GRPOTrainer

from .dump import random_state
from .findings import MicroBatch, described, dump_micro_batch, is_at_fault, local_gradients

DUMPS_WHEN_SKIPPING = 3  # of a run on each process; what is skipped later is counted only


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is NaN or infinite. `folder` holds what is needed to see it again."""

    def __init__(self, message: str, folder: Path):
        super().__init__(message)
        self.folder = folder


class NonFinite(GRPOTrainer):
    """The watch over losses and gradients for [`GRPOVideoTrainer`] (`on_nonfinite`).

    Metrics: `nonfinite/skipped`, the share of optimisation steps that were left out, under `on_nonfinite="skip"`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        self._watched: list[MicroBatch] = []
        self._watching: MicroBatch | None = None
        self._skipped_in_a_row = self._dumps_written = 0
        super().__init__(*args, **kwargs)
        if self.args.on_nonfinite == "skip" and self.is_deepspeed_enabled:
            raise ValueError(
                "on_nonfinite='skip' is not possible under DeepSpeed, whose engine takes the step within the backward pass. "
                "Set on_nonfinite='error', or use FSDP2."
            )

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            watched, self._watched = self._watched, []
            self._judge(model, watched)
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None) -> Tensor:
        if not self.model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        self._watching = seen = MicroBatch(dict(inputs), random_state(self.accelerator.device))
        try:
            loss = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        finally:
            self._watching = None
        seen.terms["loss"] = loss.detach()
        self._watched.append(seen)
        return loss

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        loss = super()._compute_loss(model, inputs)  # TRL's, without any penalty
        self._saw("policy loss", loss)
        return loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple:
        scored = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self._watching is not None:
            self._watching.logps.append(scored[0].detach())
        return scored

    def _saw(self, term: str, value: Tensor) -> None:
        if self._watching is not None:
            self._watching.terms[term] = value.detach()

    def _judge(self, model: nn.Module, watched: list[MicroBatch]) -> None:
        """Go on, leave the step out or stop: the same on every process."""
        losses = torch.stack([seen.terms["loss"].float() for seen in watched])
        bad_gradient = self._gradient_is_not_finite(model)
        flags = torch.stack([(~losses.isfinite()).any(), bad_gradient]).float().unsqueeze(0)
        flags = self.accelerator.gather(flags).bool()
        skips = self.args.on_nonfinite == "skip"
        if not flags.any():
            self._skipped_in_a_row = 0
            if skips:
                self._metrics["train"]["nonfinite/skipped"].append(0.0)
            return
        stops = not skips or self._skipped_in_a_row >= self.args.max_nonfinite_skips
        folder = Path(self.args.output_dir) / "nonfinite" / f"step-{self.state.global_step:06d}"
        message = f"step {self.state.global_step}: {described(self.accelerator.unwrap_model(model), watched, flags)}"
        problem = ""
        if stops or self._dumps_written < DUMPS_WHEN_SKIPPING:
            self._dumps_written += 1
            problem = self._dumped_by_all(model, watched, flags, folder, message, with_weights=stops)
        if stops:
            limit = f" after {self._skipped_in_a_row} steps in a row that were left out" if skips else ""
            where = problem or f"{folder} holds it for trl_perception.trainers.replay (see docs/faults.md)"
            raise NonFiniteError(
                f"{message}{limit}. {where}; on_nonfinite='skip' leaves such steps out, at most max_nonfinite_skips in a row.",
                folder,
            )
        told = "; ".join(part for part in (message, problem, "the step is left out (on_nonfinite='skip')") if part)
        warnings.warn(told, stacklevel=2)
        self._skipped_in_a_row += 1
        self._metrics["train"]["nonfinite/skipped"].append(1.0)
        self._drop_gradients(model)

    def _gradient_is_not_finite(self, model: nn.Module) -> Tensor:
        """One flag. A scaler of float16 meets infinite gradients all the time, and leaves those steps out itself."""
        device = self.accelerator.device
        if self.accelerator.scaler is not None:
            return torch.tensor(False, device=device)
        if self.is_deepspeed_enabled:  # its engine has taken the gradients already
            norm = model.get_global_grad_norm()
            return ~torch.as_tensor(0.0 if norm is None else norm, device=device).isfinite()
        gradients = [gradient for _, gradient in local_gradients(model)]
        return ~torch.nn.utils.get_total_norm(gradients).to(device).isfinite()

    def _drop_gradients(self, model: nn.Module) -> None:
        """An optimizer passes over parameters without gradient: weights, moments and decay stay as they are."""
        if self.accelerator.scaler is None:
            model.zero_grad(set_to_none=True)
            return
        for _, gradient in local_gradients(model):  # the scaler wants gradients, and leaves the step out for one NaN
            gradient.fill_(torch.nan)
            return

    def _dumped_by_all(self, *args: Any, **options: Any) -> str:
        """Write the dump and wait for the others' parts: when one process ends, the launcher ends the rest at once.

        Returns: what could not be written, on any process.
        """
        problem = "the dump was broken off"
        try:
            problem = self._kept(*args, **options)
        finally:
            problem = _of_all_processes(problem)
        return problem

    def _kept(
        self,
        model: nn.Module,
        watched: list[MicroBatch],
        flags: Tensor,
        folder: Path,
        message: str,
        *,
        with_weights: bool,
    ) -> str:
        """Write the dump. A disk that refuses it must not hide what it is about: the refusal is returned, in words.

        DeepSpeed's engine has taken the step, so that its weights are others already.
        """
        state = None
        if with_weights and not self.is_deepspeed_enabled:
            state = self.accelerator.get_state_dict(model)  # every process has its part
        try:
            for number, seen in enumerate(watched):
                if is_at_fault(seen, flags):
                    own = folder / f"process-{self.accelerator.process_index}" / f"micro-batch-{number}"
                    dump_micro_batch(self, own, seen, message)
            if state is not None and self.accelerator.is_main_process:
                self.accelerator.unwrap_model(model).save_pretrained(folder / "weights", state_dict=state)
                self.processing_class.save_pretrained(folder / "weights")
        except (OSError, SafetensorError) as error:
            return f"the dump could not be written: {error}"
        return ""


def _of_all_processes(problem: str) -> str:
    """The problems of all processes. One that died is a problem too, and must not hide what was found."""
    try:
        problems = gather_object([problem])
    except RuntimeError as error:
        return (
            f"{problem or 'this part of the dump is written'}, but another process ended before its part was: {error}"
        )
    if len(problems) == 1:
        return problem
    return "; ".join(f"process {process}: {said}" for process, said in enumerate(problems) if said)
