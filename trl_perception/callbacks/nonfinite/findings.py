"""What of an optimisation step is not finite: its micro-batches, their words, their way to disk."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .dump import write_dump

if TYPE_CHECKING:
    from ...trainers.grpo_video_trainer import GRPOVideoTrainer

NAMES_SHOWN = 5


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


def is_at_fault(seen: MicroBatch, flags: Tensor) -> bool:
    """Its loss is not finite; or nobody's is not, and then any micro-batch may have made the gradient so.

    Args: flags: (processes,2) bool, whether a loss and whether the gradient is not finite.
    """
    return not bool(flags[:, 0].any()) or not bool(seen.terms["loss"].isfinite())


def described(model: nn.Module, watched: Sequence[MicroBatch], flags: Tensor) -> str:
    """Which processes, micro-batches, samples and parameters are concerned, in words."""
    of_loss, of_gradient = (flags[:, kind].nonzero()[:, 0].tolist() for kind in (0, 1))
    if of_loss:
        told = f"the loss is not finite on process(es) {', '.join(map(str, of_loss))} of {len(flags)}"
    else:
        told = f"the gradient is not finite on process(es) {', '.join(map(str, of_gradient))} of {len(flags)}"
    for number, seen in enumerate(watched):
        if is_at_fault(seen, flags):
            found = ", ".join(seen.findings())
            names = ", ".join(dict.fromkeys(sample["name"] for sample in seen.inputs["sample"]))
            told += f"; micro-batch {number + 1} of {len(watched)} here ({names}){': ' if found else ''}{found}"
    weights = [name for name, p in model.named_parameters() if not local(p.data).isfinite().all()]
    gradients = [name for name, gradient in local_gradients(model) if not gradient.isfinite().all()]
    for what, names in (("weights", weights), ("gradient", gradients)):
        if names:
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            told += f"; {what} not finite in {', '.join(names[:NAMES_SHOWN])}{more}"
    return told


def dump_micro_batch(
    trainer: "GRPOVideoTrainer", folder: str | os.PathLike, seen: MicroBatch, message: str = ""
) -> None:
    """Write a micro-batch of a trainer for [`~trl_perception.trainers.replay`]; `message` says why, for the reader."""
    inputs, tokenizer = seen.inputs, trainer._tokenizer
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
            "class": type(trainer).__name__,
            "step": trainer.state.global_step,
            "sampled_at_step": trainer._sampled_at_step,
            "accumulation": trainer.current_gradient_accumulation_steps,
            "packs": trainer._forwards.packs,
        },
    }
    facts = {
        "found": message,
        "not_finite": seen.findings(),
        "terms": {name: value.item() for name, value in seen.terms.items()},
        "process": trainer.accelerator.process_index,
        "processes": trainer.accelerator.num_processes,
        **values["trainer"],
        "samples": [{**sample, "completion": text} for sample, text in zip(inputs["sample"], completions, strict=True)],
        "settings": trainer.args.to_dict(),  # without tokens
    }
    write_dump(folder, values, facts)


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def local_gradients(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and this process's parts of the gradients that there are."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, local(parameter.grad)
