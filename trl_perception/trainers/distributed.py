"""Several processes: which of them share parameters, and how they run the same collectives."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import is_peft_model
from torch import Tensor, nn
from trl.models import prepare_deepspeed, prepare_fsdp

from ..families import TEXT_ONLY
from ..modeling import Head, OneTowerRun, base_model, gather_lm_head, head_is_sharded, head_of
from ..modeling.activation_checkpointing import without_checkpointing
from ..modeling.vision import family_of_model


class CollectiveScheduler:
    """Lets each process read as many forwards as its prompts need, where parameters are sharded over processes.

    With sharded parameters a forward is a series of collectives, in which every process must take part. What a method
    reads depends on its prompts (a video has three forwards in Video-KTR, a text none). So each process gathers, before each
    forward inside a [`section`], the number of the model that it wants to run; the other processes run an empty forward of
    that model beside it, and a process leaves the section when none wants any more. Without sharding nothing is gathered and
    no empty forward is run.

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
        """Context manager in which processes may run different numbers of forwards of the shared models."""
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
        """Call it before each forward; inside a section it returns when it is this process's turn."""
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
        """1, 2, ... for a shared model, 0 for any other."""
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


@dataclass(frozen=True)
class Sharding:
    """How the processes of a run share a model's parameters and gradients.

    Args:
        accelerator: its processes.
        fsdp, deepspeed: whether the run is launched with either.
        find_unused_parameters: whether DDP looks for parameters without gradient.
    """

    accelerator: Accelerator
    fsdp: bool
    deepspeed: bool
    find_unused_parameters: bool | None

    @property
    def zero_stage(self) -> int:
        plugin = self.accelerator.state.deepspeed_plugin if self.deepspeed else None
        return 0 if plugin is None else plugin.zero_stage

    @property
    def shards_parameters(self) -> bool:
        return self.fsdp or self.zero_stage == 3

    @property
    def waits_for_every_gradient(self) -> bool:
        """Whether a process without media would leave the others waiting for its tower's gradients or parameters."""
        several = self.accelerator.num_processes > 1
        return several and (self.fsdp or self.deepspeed or not self.find_unused_parameters)

    def tower_runs(self, model: nn.Module) -> list[OneTowerRun]:
        """Hooks under which every forward of the model makes the same collectives, whatever its media, where it has to."""
        return [OneTowerRun(model)] if self.waits_for_every_gradient and _has_tower(model) else []

    def refuse_what_would_hang(self, model: nn.Module, args: Any, *, sees: bool, references: bool) -> None:
        """Refuse settings under which processes would wait for each other forever, before anything is sampled.

        Args:
            model: the policy. args: the trainer's configuration.
            sees: whether it is a vision-language model. references: whether a reference model runs beside it.
        Errors: ValueError naming the setting.
        """
        if self.accelerator.num_processes == 1 or not (self.fsdp or self.deepspeed):
            return
        if sees and (reason := family_of_model(model).sharding_unsupported_reason):
            raise ValueError(
                f"{base_model(model).config.model_type} is not supported under FSDP and DeepSpeed, where processes whose prompts "
                f"differ in media would wait for each other forever: {reason}. Use DDP (recipes/accelerate_configs/ddp.yaml), or "
                "another family (docs/models.md)."
            )
        if self.zero_stage == 3 and not args.ds3_gather_for_generation:
            raise ValueError(
                "ds3_gather_for_generation is False: completions would be sampled with shares of parameters, and processes "
                "whose prompts differ in media would wait for each other forever. Set ds3_gather_for_generation=True."
            )
        if self.zero_stage == 3 and args.on_bad_media == "skip" and is_peft_model(model):
            raise ValueError(
                "on_bad_media is 'skip' with an adapter under ZeRO-3, which gathers an adapter's parameters by themselves: a "
                "process that leaves a sample out would gather other ones than its neighbours. Set on_bad_media='error' "
                "(`trl-perception prepare` finds bad rows beforehand), or use FSDP2 or ZeRO-2."
            )
        if self.fsdp and (version := self.accelerator.state.fsdp_plugin.fsdp_version) != 2:
            raise ValueError(f"fsdp_version is {version}; set it to 2 in the accelerate configuration.")
        if references:
            self.require_weights_everywhere(f"the reference model (beta is {args.beta:g})")

    def place_frozen(self, model: nn.Module, name: str) -> nn.Module:
        """A model without gradient, placed or sharded as TRL does it with a reference model; `name` is for the error."""
        if self.deepspeed:
            return prepare_deepspeed(model, self.accelerator)
        if self.fsdp:
            self.require_weights_everywhere(name)
            return prepare_fsdp(model, self.accelerator)
        return self.accelerator.prepare_model(model, evaluation_mode=True)

    def require_weights_everywhere(self, model: str) -> None:
        """Errors: ValueError where FSDP loads weights on the first process only and nobody sends this model's to the others."""
        if self.fsdp and self.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading:
            raise ValueError(
                f"fsdp_cpu_ram_efficient_loading is set: the first process alone loads weights, and those of {model} would "
                "not reach the others. Set fsdp_cpu_ram_efficient_loading: false in the accelerate configuration."
            )


def over_processes(accelerator: Accelerator, *values: float) -> Tensor:
    """The values of all processes, in their order: (processes * values,) float."""
    return accelerator.gather(torch.tensor(values, dtype=torch.float32, device=accelerator.device))


@torch.no_grad()
def empty_forward(model: nn.Module, *, accelerator: Accelerator, token_id: int) -> None:
    """The collectives of a forward, for three tokens of padding."""
    ids = torch.full((1, 3), token_id, device=accelerator.device)
    with without_checkpointing(model), accelerator.autocast():
        model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=True)


def _has_tower(model: nn.Module) -> bool:
    return family_of_model(model) is not TEXT_ONLY
