"""What a model card states of a run: where it comes from, what it trained, what came of it."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import nn

from ...modeling.freezing import part_of
from ...reports import reward_gain

PARTS = {"tower": "vision tower", "merger": "merger", None: "language model"}
# Metrics of TRL that say how a run went, and the prefixes of those that do not: any other prefix is a method's own.
OUTCOMES = ("completions/mean_length", "entropy", "kl", "clip_ratio/region_mean", "eval_reward")
OTHER_PREFIXES = ("rewards", "completions", "clip_ratio", "sampling", "media", "profiling")


@dataclass(frozen=True)
class Origin:
    """Where a run comes from.

    Args:
        recipe: its settings, as YAML that runs again.
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


def before_and_after(log_history: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Means of a run's metrics over the first and over the last tenth of the steps that logged them.

    Args:
        log_history: `trainer.state.log_history`.
    Returns: {metric: (before, after)}: rewards, then what TRL says of completions and loss, then the method's own.
    """
    keys = sorted({key for entry in log_history for key in entry})
    rewards = [key for key in keys if key.removeprefix("eval_").startswith("rewards/") and key.endswith("/mean")]
    own = [key for key in keys if "/" in key and key.removeprefix("eval_").split("/")[0] not in OTHER_PREFIXES]
    chosen = ["reward", *rewards, *OUTCOMES, *(key for key in own if not key.startswith("eval_"))]
    gains = {key: reward_gain(_in_reward_place(log_history, key)) for key in chosen}
    return {key: gain for key, gain in gains.items() if gain is not None}


def parts_trained(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Parameters of each part of a model, and how many of them were trained: {part: (all, trained)}."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        part = "adapter" if "lora_" in name else PARTS[part_of(name)]
        size = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 leaves an empty tensor in a parameter's place
        everything, trained = counts.get(part, (0, 0))
        counts[part] = everything + size, trained + size * parameter.requires_grad
    return counts


def hardware(accelerator: Accelerator) -> str:
    """The kind of device and how many processes used one, in words."""
    device, processes = accelerator.device, accelerator.num_processes
    kind = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type.upper()} ({platform.machine()})"
    )
    return (
        f"{kind}, {processes} {'process' if processes == 1 else 'processes'} "
        f"(`{accelerator.distributed_type.value}`), mixed precision `{accelerator.mixed_precision}`"
    )


def _in_reward_place(log_history: Sequence[Mapping[str, float]], key: str) -> list[dict[str, float]]:
    """Another metric where `reward_gain` looks for the reward."""
    return [{"step": entry["step"], "reward": entry[key]} for entry in log_history if entry.get(key) is not None]
