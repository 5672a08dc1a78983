"""The facts of a run for its model card: origin, trained parts, results."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from torch import nn

from ..modeling.freezing import part_of
from .curve import reward_gain

PARTS = {"tower": "vision tower", "merger": "merger", None: "language model"}
# Metrics of TRL to show, and prefixes of those not to show: any other prefix is a method's own.
OUTCOMES = ("completions/mean_length", "entropy", "kl", "clip_ratio/region_mean", "eval_reward")
OTHER_PREFIXES = ("rewards", "completions", "clip_ratio", "sampling", "media", "profiling")


@dataclass(frozen=True)
class Origin:
    """The origin of a run.

    Args:
        recipe: its settings, as YAML that can be run again.
        command: the command line.
        base: name or path of the model that was trained.
        dataset, split: the rows it was trained on.
        on_hub: whether `dataset` is the name of a data set on the Hub.
        merged: whether the run ends by merging its adapter into the weights.
        name: the recipe's name, such as "appo/tiny", or its file's.
        template: the prompt template.
    """

    recipe: str
    command: str
    base: str
    dataset: str
    split: str
    on_hub: bool = False
    merged: bool = False
    name: str | None = None
    template: str = "none"


@dataclass(frozen=True)
class CardFacts:
    """The facts of a run that a card needs.

    Args:
        trainer: the trainer's class, with TRL's `_name` and `_paper`.
        name: the name to load the model by: on the Hub, or its folder's.
        settings: the trainer's config.
        model: what was trained. processor: its processor or tokenizer.
        prepares_prompts: whether this package prepared the prompts' media, and not TRL.
        dataset: the training rows.
        log_history: `trainer.state.log_history`.
        accelerator: the run's processes and devices.
        origin: None for a run without a recipe.
    """

    trainer: type
    name: str
    settings: Any
    model: nn.Module
    processor: Any
    prepares_prompts: bool
    dataset: Any
    log_history: Sequence[Mapping[str, float]]
    accelerator: Accelerator
    origin: Origin | None = None

    @property
    def template(self) -> str:
        """The prompt template."""
        return "none" if self.origin is None else self.origin.template

    @property
    def is_adapter(self) -> bool:
        """Whether the saved weights are an adapter of a base model."""
        return isinstance(self.model, PeftModel) and not (self.origin is not None and self.origin.merged)

    @property
    def reads_media(self) -> bool:
        """Whether the model takes images and videos."""
        return hasattr(self.processor, "image_processor")


def before_and_after(log_history: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Return means of a run's metrics over the first and over the last tenth of the steps that logged them.

    Args:
        log_history: `trainer.state.log_history`.
    Returns: {metric: (before, after)}: rewards, then TRL's metrics of completions and loss, then the method's own.
    """
    keys = sorted({key for entry in log_history for key in entry})
    rewards = [key for key in keys if key.removeprefix("eval_").startswith("rewards/") and key.endswith("/mean")]
    own = [key for key in keys if "/" in key and key.removeprefix("eval_").split("/")[0] not in OTHER_PREFIXES]
    chosen = ["reward", *rewards, *OUTCOMES, *(key for key in own if not key.startswith("eval_"))]
    gains = {key: reward_gain(_in_reward_place(log_history, key)) for key in chosen}
    return {key: gain for key, gain in gains.items() if gain is not None}


def parts_trained(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Count the parameters of each part of a model: {part: (all, trained)}."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        part = "adapter" if "lora_" in name else PARTS[part_of(name)]
        size = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves an empty tensor in a parameter's place
        everything, trained = counts.get(part, (0, 0))
        counts[part] = everything + size, trained + size * parameter.requires_grad
    return counts


def hardware(accelerator: Accelerator) -> str:
    """Return the kind of device and the number of processes, as text."""
    device, processes = accelerator.device, accelerator.num_processes
    kind = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type.upper()} ({platform.machine()})"
    )
    return (
        f"{kind}, {processes} {'process' if processes == 1 else 'processes'} "
        f"(`{accelerator.distributed_type.value}`), mixed precision `{accelerator.mixed_precision}`"
    )


def _in_reward_place(log_history: Sequence[Mapping[str, float]], key: str) -> list[dict[str, float]]:
    """Copy another metric to the key that `reward_gain` reads."""
    return [{"step": entry["step"], "reward": entry[key]} for entry in log_history if entry.get(key) is not None]
