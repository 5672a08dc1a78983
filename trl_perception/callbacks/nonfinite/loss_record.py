"""What the loss of a micro-batch was made of, which of it is not finite, and its dump."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...batch import loss_mask
from ...serialization import write_dump

NAMES_SHOWN = 5


@dataclass
class LossRecord:
    """One micro-batch of the step in hand, as it was before its loss, and the parts of that loss.

    Args:
        inputs: what the loss was computed of. random: the generators' states before it.
        terms: parts of the loss by name, scalars without gradient; "loss" is their sum.
        logps: log-probabilities (rows,T) of the policy in this update, in the chunks of its forward.
    """

    inputs: dict[str, Any]
    random: dict[str, Any]
    terms: dict[str, Tensor] = field(default_factory=dict)
    logps: list[Tensor] = field(default_factory=list)

    @property
    def findings(self) -> list[str]:
        """The values that are not finite, nearest to the cause first, each as "name (how many)"."""
        counted = loss_mask(self.inputs)
        values = {
            name: value
            for name, value in self.inputs.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }
        if self.logps:
            values["log-probabilities of the policy"] = torch.cat(self.logps)
        found = []
        for name, value in values.items():
            read = value[counted] if value.shape == counted.shape else value
            if bad := int((~read.isfinite()).sum()):
                found.append(f"{name} ({bad} of {read.numel()})")
        return found + [f"{name} ({value.item()})" for name, value in self.terms.items() if not value.isfinite().all()]

    def is_at_fault(self, flags: Tensor) -> bool:
        """Whether its loss is not finite, or no loss is at fault, so that any micro-batch may have made the gradient so.

        Args: flags: (processes,2) bool, whether a loss and whether the gradient is not finite.
        """
        return not bool(flags[:, 0].any()) or not bool(self.terms["loss"].isfinite())

    def dump(
        self,
        folder: Path,
        context: Mapping[str, Any],
        completions: Sequence[str],
        facts: Mapping[str, Any],
    ) -> None:
        """Write the micro-batch for [`~trl_perception.trainers.replay`].

        Args:
            context: what else the loss depends on (class of the trainer, step, accumulation), for the replay.
            completions: the rows' completions as text.
            facts: more for a reader of `facts.json`.
        """
        values = {
            "inputs": self.inputs,
            "random": self.random,
            "logps": torch.cat(self.logps),
            "terms": self.terms,
            "trainer": dict(context),
        }
        samples = zip(self.inputs["sample"], completions, strict=True)
        facts = {
            **facts,
            "not_finite": self.findings,
            "terms": {name: value.item() for name, value in self.terms.items()},
            **context,
            "samples": [{**sample, "completion": text} for sample, text in samples],
        }
        write_dump(folder, values, facts)


def describe_fault(model: nn.Module, records: Sequence[LossRecord], flags: Tensor) -> str:
    """Which processes, micro-batches, samples and parameters are concerned, in one line."""
    what, column = ("loss", 0) if flags[:, 0].any() else ("gradient", 1)
    processes = ", ".join(map(str, flags[:, column].nonzero()[:, 0].tolist()))
    parts = [f"the {what} is not finite on process(es) {processes} of {len(flags)}"]
    for number, record in enumerate(records):
        if record.is_at_fault(flags):
            found = ", ".join(record.findings)
            names = ", ".join(dict.fromkeys(sample["name"] for sample in record.inputs["sample"]))
            parts.append(f"micro-batch {number + 1} of {len(records)} here ({names}){': ' if found else ''}{found}")
    weights = ((name, local(parameter.data)) for name, parameter in model.named_parameters())
    for kind, tensors in (("weights", weights), ("gradient", local_gradients(model))):
        if names := [name for name, tensor in tensors if not tensor.isfinite().all()]:
            more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
            parts.append(f"{kind} not finite in {', '.join(names[:NAMES_SHOWN])}{more}")
    return "; ".join(parts)


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def local_gradients(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Names and this process's parts of the gradients that there are."""
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, local(parameter.grad)
