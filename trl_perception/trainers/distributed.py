"""Processes that hold shares of one model: every forward is a meeting, and all of them come to the same meetings."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..modeling import Head, gather_lm_head, head_is_sharded, head_of


class CollectiveScheduler:
    """Lets each process read as many forwards as its prompts need, where parameters are sharded over processes.

    With sharded parameters a forward is a series of collectives, in which every process must take part. What a method
    reads depends on its prompts (a video has three forwards in Video-KTR, a text none), so within a [`section`] a process
    says before each forward that it wants one, in one gathered number; the others then run an empty one beside it, and a
    process leaves when none wants any more. Without sharding nothing is said and nothing is run.

    Args:
        accelerator: its processes. shards: whether parameters are sharded over them.
        empty_forward: (model) -> None, a forward of a few tokens, without gradient.
    """

    def __init__(self, accelerator: Accelerator, shards: bool, empty_forward: Callable[[nn.Module], Any]):
        self.accelerator = accelerator
        self.active = shards and accelerator.num_processes > 1
        self.empty_forward = empty_forward
        self.models: list[nn.Module] = []
        self._open = False
        self._heads: dict[int, Head] = {}

    def share(self, model: nn.Module | None) -> None:
        """Name a model whose parameters are sharded; every process does so in the same order."""
        if model is not None and not any(model is known for known in self.models):
            self.models.append(model)

    @contextmanager
    def section(self) -> Iterator[None]:
        """Within it, processes may run different numbers of forwards of the shared models."""
        if not self.active:
            yield
            return
        self._open = True
        try:
            yield
            while turn := self._agree(0):
                self._take_part(turn)
        finally:
            self._open, self._heads = False, {}

    def before_forward(self, model: nn.Module) -> None:
        """To be called before each forward; inside a section it returns when it is this process's turn."""
        if self._open and (number := self._number(model)):
            self._wait_for(number)

    def head_of(self, model: nn.Module) -> Head:
        """The head of a model; inside a section whole and without gradient, gathered when it is this process's turn."""
        number = self._number(model) if self._open else 0
        if not number or not head_is_sharded(model):
            return head_of(model)
        if number not in self._heads:
            self._wait_for(-number)
            self._gather_head(number)
        return self._heads[number]

    def _number(self, model: nn.Module) -> int:
        """1, 2, ... for a shared model, 0 for another, which needs nobody."""
        return next((number for number, known in enumerate(self.models, 1) if known is model), 0)

    def _wait_for(self, wanted: int) -> None:
        while (turn := self._agree(wanted)) != wanted:
            self._take_part(turn)

    def _agree(self, wanted: int) -> int:
        """The turn that is taken next: a model's number for a forward, less than 0 for its head, 0 where all are done."""
        everyone = self.accelerator.gather(torch.tensor([wanted], device=self.accelerator.device)).tolist()
        return min((turn for turn in everyone if turn), default=0)

    def _take_part(self, turn: int) -> None:
        if turn < 0:
            self._gather_head(-turn)
        else:
            self.empty_forward(self.models[turn - 1])

    def _gather_head(self, number: int) -> None:
        self._heads[number] = gather_lm_head(self.models[number - 1])
