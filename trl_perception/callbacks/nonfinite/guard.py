"""Losses and gradients that are not finite: the run stops with a dump to replay, or leaves the step out.

The processes exchange one flag each at the end of an optimisation step, after its last backward pass and before clipping,
so that all of them stop or continue together.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import TrainingArguments

from ...serialization import random_state
from .loss_record import LossRecord, describe_fault, local_gradients

DUMPS_WHEN_SKIPPING = 3  # of a run on each process; steps skipped later are counted only


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is NaN or infinite. `folder` holds what is needed to see it again."""

    def __init__(self, message: str, folder: Path):
        super().__init__(message)
        self.folder = folder


class NonFiniteGuard:
    """Records the micro-batches of an optimisation step, and checks their losses and the gradient at its end.

    Args:
        accelerator: the run's processes.
        args: the settings `on_nonfinite`, `max_nonfinite_skips` and `output_dir`; all of them are written into a dump.
        processor: the processor or tokenizer that is saved beside dumped weights, and decodes completions.

    Attributes:
        records: the micro-batches of the step in hand, in their order.
        skipped_in_a_row: optimisation steps that were left out since the last one that was taken.
    """

    def __init__(self, accelerator: Accelerator, args: TrainingArguments, processor: Any):
        self.accelerator, self.args, self.processor = accelerator, args, processor
        self.records: list[LossRecord] = []
        self.skipped_in_a_row = 0
        self._open: list[LossRecord] = []  # the micro-batch whose loss is being computed
        self._dumps = 0
        self._skips = args.on_nonfinite == "skip"
        self._has_engine = getattr(accelerator.state, "deepspeed_plugin", None) is not None
        if self._skips and self._has_engine:
            raise ValueError(
                "on_nonfinite='skip' is not possible under DeepSpeed, whose engine takes the step within the backward pass. "
                "Set on_nonfinite='error', or use FSDP2."
            )

    @contextmanager
    def recording(self, inputs: Mapping[str, Any]) -> Iterator[None]:
        """Context manager that records the loss of a micro-batch; outside it, `record_term` and `record_logps` do nothing."""
        self._open = [LossRecord(dict(inputs), random_state(self.accelerator.device))]
        try:
            yield
            self.records += self._open
        finally:
            self._open = []

    def record_term(self, name: str, value: Tensor) -> None:
        """Record a part of the loss, a scalar; "loss" is the whole."""
        for record in self._open:
            record.terms[name] = value.detach()

    def record_logps(self, logps: Tensor) -> None:
        """Record log-probabilities (rows,T) of the policy."""
        for record in self._open:
            record.logps.append(logps.detach())

    def check_step(self, model: nn.Module, context: Mapping[str, Any]) -> dict[str, float]:
        """Stop, leave the step out or do nothing at the end of an optimisation step: the same on every process.

        Args:
            model: the model whose gradients are checked, and dropped where the step is left out.
            context: for a dump, see [`LossRecord.dump`]; `step` is the number of the step.
        Returns: under `on_nonfinite="skip"` the metric `nonfinite/skipped`, 1 where the step was left out.
        Errors: NonFiniteError under `on_nonfinite="error"`, and after `max_nonfinite_skips` steps in a row.
        """
        records, self.records = self.records, []
        losses = torch.stack([record.terms["loss"].float() for record in records])
        flags = torch.stack([(~losses.isfinite()).any(), self._gradient_is_not_finite(model)])
        flags = self.accelerator.gather(flags.float().unsqueeze(0)).bool()
        if not flags.any():
            self.skipped_in_a_row = 0
            return {"nonfinite/skipped": 0.0} if self._skips else {}
        stops = not self._skips or self.skipped_in_a_row >= self.args.max_nonfinite_skips
        step = context["step"]
        folder = Path(self.args.output_dir) / "nonfinite" / f"step-{step:06d}"
        message = f"step {step}: {describe_fault(self.accelerator.unwrap_model(model), records, flags)}"
        problem = ""
        if stops or self._dumps < DUMPS_WHEN_SKIPPING:
            self._dumps += 1
            at_fault = {number: record for number, record in enumerate(records) if record.is_at_fault(flags)}
            problem = self._dump_on_all(model, at_fault, folder, context, message, with_weights=stops)
        if stops:
            limit = f" after {self.skipped_in_a_row} steps in a row that were left out" if self._skips else ""
            where = problem or f"{folder} holds it for trl_perception.trainers.replay (see docs/faq.md)"
            raise NonFiniteError(
                f"{message}{limit}. {where}; on_nonfinite='skip' leaves such steps out, at most max_nonfinite_skips in a row.",
                folder,
            )
        parts = (message, problem, "the step is left out (on_nonfinite='skip')")
        warnings.warn("; ".join(filter(None, parts)), stacklevel=2)
        self.skipped_in_a_row += 1
        self._drop_gradients(model)
        return {"nonfinite/skipped": 1.0}

    def _gradient_is_not_finite(self, model: nn.Module) -> Tensor:
        """One flag. A float16 scaler finds infinite gradients all the time, and leaves those steps out itself."""
        device = self.accelerator.device
        if self.accelerator.scaler is not None:
            return torch.tensor(False, device=device)
        if self._has_engine:  # it has taken the gradients already
            norm = model.get_global_grad_norm()
            return ~torch.as_tensor(0.0 if norm is None else norm, device=device).isfinite()
        return ~torch.nn.utils.get_total_norm([grad for _, grad in local_gradients(model)]).to(device).isfinite()

    def _drop_gradients(self, model: nn.Module) -> None:
        """An optimizer passes over parameters without gradient: weights, moments and decay stay as they are."""
        if self.accelerator.scaler is None:
            model.zero_grad(set_to_none=True)
        elif (gradient := next((gradient for _, gradient in local_gradients(model)), None)) is not None:
            gradient.fill_(torch.nan)  # the scaler wants gradients, and leaves the step out for one NaN

    def _dump_on_all(self, *args: Any, **options: Any) -> str:
        """Write the dump and wait for the others' parts: when one process ends, the launcher ends the rest at once.

        Returns: what could not be written, on any process. One that died must not hide what was found.
        """
        problem = "the dump was broken off"
        try:
            problem = self._dump(*args, **options)
        finally:
            try:
                problems = gather_object([problem])
                several = len(problems) > 1
                problem = "; ".join(f"process {n}: {p}" if several else p for n, p in enumerate(problems) if p)
            except RuntimeError as error:
                own = problem or "this part of the dump is written"
                problem = f"{own}, but another process ended before its part was: {error}"
        return problem

    def _dump(
        self,
        model: nn.Module,
        at_fault: Mapping[int, LossRecord],
        folder: Path,
        context: Mapping[str, Any],
        message: str,
        *,
        with_weights: bool,
    ) -> str:
        """Write this process's part of the dump.

        DeepSpeed's engine has taken the step, so that the weights of the loss are gone.

        Returns: why a disk refused it, or "": a refusal must not hide what the dump is about.
        """
        state: dict[str, Tensor] = {}
        with_weights = with_weights and not self._has_engine
        if with_weights:
            state = self.accelerator.get_state_dict(model)  # every process has its part
        process = self.accelerator.process_index
        facts = {"found": message, "process": process, "processes": self.accelerator.num_processes}
        facts["settings"] = self.args.to_dict()  # without tokens
        try:
            for number, record in at_fault.items():
                completions = self._completions(record.inputs)
                record.dump(folder / f"process-{process}" / f"micro-batch-{number}", context, completions, facts)
            if with_weights and self.accelerator.is_main_process:
                self.accelerator.unwrap_model(model).save_pretrained(folder / "weights", state_dict=state)
                self.processor.save_pretrained(folder / "weights")
        except (OSError, SafetensorError) as error:
            return f"the dump could not be written: {error}"
        return ""

    def _completions(self, inputs: Mapping[str, Any]) -> Sequence[str]:
        lengths = inputs["completion_mask"].sum(1).tolist()
        return [
            self.processor.decode(ids[:length]) for ids, length in zip(inputs["completion_ids"], lengths, strict=True)
        ]
