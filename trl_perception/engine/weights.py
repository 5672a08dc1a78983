"""Weights on their way to the engine: adapters are merged a layer at a time, and the base keeps its bits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

Named = Iterator[tuple[str, Tensor]]
FILE_SIZE = 2**31  # bytes after which a file of weights is closed: so much is held in memory


def merged_parameters(
    model: PeftModel, gathered: Callable[[Sequence[nn.Parameter]], AbstractContextManager], device: torch.device
) -> Named:
    """Yield names and weights for the engine, those of adapted layers merged.

    TRL merges the whole adapter into the base and takes it out again, which rounds a base in bfloat16 at every sync, and
    under ZeRO-3 gathers all parameters for it. Here a layer is gathered and merged when its turn comes, copied, and set back
    to the weights it had.

    Args:
        gathered: context manager in which parameters are whole under ZeRO-3. device: where those of FSDP are gathered.
    """
    adapters: dict[str, list[BaseTunerLayer]] = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):  # one within another for each parameter of a layer of experts
            adapters.setdefault(_name_in_base(name), []).append(module)
    for name, parameter in model.named_parameters():
        if model.prefix in name or "original_module" in name:
            continue
        of_layer, _, name_in_layer = _name_in_base(name).rpartition(".")
        layer = adapters.get(of_layer, ())
        with gathered([*layer[0].parameters()] if layer else [parameter]):
            weight = _merged(layer, name_in_layer) if layer else parameter.detach()
            yield _name_in_base(name), weight.to(device).full_tensor() if isinstance(weight, DTensor) else weight


def _name_in_base(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer", "").replace("modules_to_save.default.", "")


@torch.no_grad()
def _merged(adapters: Sequence[BaseTunerLayer], name: str) -> Tensor:
    """Return a copy of a parameter of a layer with its adapters merged. The layer is as it was."""
    base = adapters[0].get_base_layer()
    before = {key: value.detach().clone() for key, value in base.named_parameters()}
    for adapter in adapters:
        adapter.merge()
    try:
        return base.get_parameter(name).detach().clone()
    finally:
        for adapter in adapters:
            adapter.unmerge()
        for key, value in before.items():
            base.get_parameter(key).copy_(value)


def saved_buffers(model: nn.Module) -> Named:
    """Yield names and values of what a checkpoint holds besides parameters: the engine may have it among its parameters."""
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in saved and "original_module" not in name:
            yield _name_in_base(name), buffer


def write_weights(named: Named, folder: Path) -> None:
    """Write names and weights to safetensors files in a new folder."""
    folder.mkdir(parents=True)
    held: dict[str, Tensor] = {}

    def close_file() -> None:
        save_file(held, folder / f"{len(list(folder.iterdir())):05d}.safetensors")
        held.clear()

    for name, weight in named:
        held[name] = weight.detach().to("cpu", copy=True).contiguous()
        if sum(value.nbytes for value in held.values()) > FILE_SIZE:
            close_file()
    close_file()


def read_weights(folder: Path) -> Named:
    """Yield what [`write_weights`] wrote."""
    for path in sorted(folder.iterdir()):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                yield name, file.get_tensor(name)
