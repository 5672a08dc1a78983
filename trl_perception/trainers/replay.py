"""The loss of a dumped micro-batch, computed again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..serialization import random_numbers_of, read_dump
from .grpo_video_trainer import GRPOVideoTrainer


@dataclass(frozen=True)
class Replay:
    """The loss of a dumped micro-batch, now and in the run.

    Args:
        terms, dumped_terms: "loss" and its parts, now and in the run.
        logps, dumped_logps: (rows,T) log-probabilities of the policy, now and in the run.
        gradient_norm: of this micro-batch alone, now.
        gradients: parameters whose gradient is not finite now, by name.
        findings: the values that are not finite now, by name.
    """

    terms: dict[str, float]
    dumped_terms: dict[str, float]
    logps: Tensor
    dumped_logps: Tensor
    gradient_norm: float
    gradients: list[str]
    findings: list[str]


def replay(trainer: GRPOVideoTrainer, folder: str | os.PathLike) -> Replay:
    """Run forward and backward of a dumped micro-batch once more, on one process, without an optimisation step.

    Args:
        trainer: made as in the run (its class, settings and adapter), on the weights that the loss was computed with: a run
            that stopped left them in `weights` beside the folders of its processes.
        folder: a `micro-batch-...` folder.
    Errors: ValueError for another class of trainer, FileNotFoundError where there is no dump.
    """
    device = trainer.accelerator.device
    dumped = read_dump(Path(folder), device)
    run = dumped["trainer"]
    if run["class"] != type(trainer).__name__:
        raise ValueError(f"{folder} was dumped by {run['class']}; the trainer is a {type(trainer).__name__}.")
    model = trainer.model
    model.train()
    with _as_in(trainer, run), random_numbers_of(dumped["random"], device):
        model.zero_grad()
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(model, dict(dumped["inputs"]))
        loss.backward()
    record = trainer._guard.records.pop()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return Replay(
        terms={name: value.item() for name, value in record.terms.items()},
        dumped_terms={name: value.item() for name, value in dumped["terms"].items()},
        logps=torch.cat(record.logps),
        dumped_logps=dumped["logps"],
        gradient_norm=torch.nn.utils.get_total_norm(list(gradients.values())).item(),
        gradients=[name for name, gradient in gradients.items() if not gradient.isfinite().all()],
        findings=record.findings,
    )


@contextmanager
def _as_in(trainer: GRPOVideoTrainer, run: dict[str, Any]) -> Iterator[None]:
    """Context manager in which the trainer counts steps and packs rows as the run did."""
    before = trainer.state.global_step, trainer._sampled_at_step, trainer._forwards.packs
    trainer.state.global_step, trainer._sampled_at_step = run["step"], run["sampled_at_step"]
    trainer._forwards.packs, trainer.current_gradient_accumulation_steps = run["packs"], run["accumulation"]
    try:
        yield
    finally:
        trainer.state.global_step, trainer._sampled_at_step, trainer._forwards.packs = before
