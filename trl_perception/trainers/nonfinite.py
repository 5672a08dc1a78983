"""Losses and gradients that are not finite: the run stops with a dump to replay, or leaves the step out.

One flag a process is exchanged at the end of each optimisation step, after its last backward pass and before clipping, so
that all processes stop, or go on, together.
"""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from trl import GRPOTrainer

from .dump import random_state, write_dump

DUMPS_WHEN_SKIPPING = 3  # of a run on each process; what is skipped later is counted only
NAMES_SHOWN = 5


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is NaN or infinite. `folder` holds what is needed to see it again."""

    def __init__(self, message: str, folder: Path):
        super().__init__(message)
        self.folder = folder


@dataclass
class MicroBatch:
    """One micro-batch of the step in hand, as it was before its loss.

    Args:
        inputs: what the loss was computed of. random: the generators' states before it.
        terms: parts of the loss by name, scalars without gradient; "loss" is their sum.
        logps: log-probabilities (rows,T) of the policy in this update, in the chunks of its forward.
    """

    inputs: dict[str, Any]
    random: dict[str, Any]
    terms: dict[str, Tensor] = field(default_factory=dict)
    logps: list[Tensor] = field(default_factory=list)

    def findings(self) -> list[str]:
        """What of it is not finite, in words, nearest to the cause first."""
        counted = (self.inputs["completion_mask"] * self.inputs.get("tool_mask", 1)).bool()
        values = {name: value for name, value in self.inputs.items() if _is_float(value)}
        if self.logps:
            values["log-probabilities of the policy"] = torch.cat(self.logps)
        found = []
        for name, value in values.items():
            seen = value[counted] if value.shape == counted.shape else value
            bad = int((~seen.isfinite()).sum())
            if bad:
                found.append(f"{name} ({bad} of {seen.numel()})")
        return found + [f"{name} ({value.item()})" for name, value in self.terms.items() if not value.isfinite().all()]


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
        message = self._described(model, watched, flags, folder)
        if stops or self._dumps_written < DUMPS_WHEN_SKIPPING:
            self._dumps_written += 1
            self._dump(model, watched, flags, folder, message)
        if stops:
            self._save_weights(model, folder / "weights")
            limit = f" after {self._skipped_in_a_row} steps in a row that were left out" if skips else ""
            raise NonFiniteError(
                f"{message}{limit}. {folder} holds the micro-batches and weights for trl_perception.trainers.replay (see "
                "docs/faults.md); on_nonfinite='skip' leaves such steps out, at most max_nonfinite_skips in a row.",
                folder,
            )
        warnings.warn(f"{message}; the step is left out (on_nonfinite='skip')", stacklevel=2)
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
        gradients = [gradient for _, gradient in _local_gradients(model)]
        return ~torch.nn.utils.get_total_norm(gradients).to(device).isfinite()

    def _drop_gradients(self, model: nn.Module) -> None:
        """An optimizer passes over parameters without gradient: weights, moments and decay stay as they are."""
        if self.accelerator.scaler is None:
            model.zero_grad(set_to_none=True)
            return
        for _, gradient in _local_gradients(model):  # the scaler wants gradients, and leaves the step out for one NaN
            gradient.fill_(torch.nan)
            return

    def _described(self, model: nn.Module, watched: list[MicroBatch], flags: Tensor, folder: Path) -> str:
        at = f"step {self.state.global_step}: "
        of_loss, of_gradient = (flags[:, kind].nonzero()[:, 0].tolist() for kind in (0, 1))
        if of_loss:
            at += f"the loss is not finite on process(es) {', '.join(map(str, of_loss))} of {len(flags)}"
        else:
            at += f"the gradient is not finite on process(es) {', '.join(map(str, of_gradient))} of {len(flags)}"
        own = [(number, seen) for number, seen in enumerate(watched) if self._is_at_fault(seen, flags)]
        for number, seen in own:
            found = ", ".join(seen.findings())
            names = ", ".join(dict.fromkeys(sample["name"] for sample in seen.inputs["sample"]))
            at += f"; micro-batch {number + 1} of {len(watched)} here ({names}){': ' if found else ''}{found}"
        return at + "".join(f"; {line}" for line in self._parameters_at_fault(model))

    def _is_at_fault(self, seen: MicroBatch, flags: Tensor) -> bool:
        """Its loss is not finite; or nobody's is not, and then any micro-batch may have made the gradient so."""
        return not bool(flags[:, 0].any()) or not bool(seen.terms["loss"].isfinite())

    def _parameters_at_fault(self, model: nn.Module) -> Iterator[str]:
        model = self.accelerator.unwrap_model(model)
        weights = [name for name, p in model.named_parameters() if not _local(p.data).isfinite().all()]
        gradients = [name for name, gradient in _local_gradients(model) if not gradient.isfinite().all()]
        for what, names in (("weights", weights), ("gradient", gradients)):
            if names:
                more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
                yield f"{what} not finite in {', '.join(names[:NAMES_SHOWN])}{more}"

    def _dump(self, model: nn.Module, watched: list[MicroBatch], flags: Tensor, folder: Path, message: str) -> None:
        for number, seen in enumerate(watched):
            if self._is_at_fault(seen, flags):
                own = folder / f"process-{self.accelerator.process_index}" / f"micro-batch-{number}"
                self.dump_micro_batch(own, seen, message)

    def dump_micro_batch(self, folder: str | Path, seen: MicroBatch, message: str = "") -> None:
        """Write a micro-batch of this trainer, for [`replay`]. `message` says why, for the reader."""
        inputs, tokenizer = seen.inputs, self._tokenizer
        lengths = inputs["completion_mask"].sum(1).tolist()
        completions = [
            tokenizer.decode(ids[:length]) for ids, length in zip(inputs["completion_ids"], lengths, strict=True)
        ]
        values = {
            "inputs": inputs,
            "random": seen.random,
            "logps": torch.cat(seen.logps),
            "terms": seen.terms,
            "trainer": {
                "class": type(self).__name__,
                "step": self.state.global_step,
                "sampled_at_step": self._sampled_at_step,
                "accumulation": self.current_gradient_accumulation_steps,
                "packs": self._forwards.packs,
            },
        }
        facts = {
            "found": message,
            "not_finite": seen.findings(),
            "terms": {name: value.item() for name, value in seen.terms.items()},
            "process": self.accelerator.process_index,
            "processes": self.accelerator.num_processes,
            **values["trainer"],
            "samples": [
                {**sample, "completion": text} for sample, text in zip(inputs["sample"], completions, strict=True)
            ],
            "settings": self.args.to_dict(),  # without tokens
        }
        write_dump(folder, values, facts)

    def _save_weights(self, model: nn.Module, folder: Path) -> None:
        """The weights that the loss was computed with. Under DeepSpeed those after the step, which its engine has taken."""
        state = self.accelerator.get_state_dict(model)  # every process has its part
        if self.accelerator.is_main_process:
            self.accelerator.unwrap_model(model).save_pretrained(folder, state_dict=state)
            self.processing_class.save_pretrained(folder)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _local_gradients(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, _local(parameter.grad)
