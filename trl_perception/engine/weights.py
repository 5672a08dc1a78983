"""Weights on their way to the engine: adapters are merged a layer at a time, and the base keeps its bits."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


def merged_parameters(model: nn.Module, parameters: Callable[[], Named]) -> Named:
    """Yield names and weights for the engine, those of adapted layers merged.

    TRL merges the whole adapter into the base and takes it out again, which rounds a base in bfloat16 at every sync. Here a
    layer is merged when its turn comes, copied, and set back to the weights it had.

    Args: parameters: TRL's iterator over the names and weights of the policy.
    """
    if not isinstance(model, PeftModel):
        yield from parameters()
        return
    adapters: dict[str, list[BaseTunerLayer]] = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer):  # one within another for each parameter of a layer of experts
            adapters.setdefault(name.removeprefix("base_model.model.").replace(".base_layer", ""), []).append(module)
    with _unmerged(model):
        for name, weight in parameters():
            of_layer, _, parameter = name.rpartition(".")
            yield name, _merged(adapters[of_layer], parameter) if of_layer in adapters else weight


@torch.no_grad()
def _merged(adapters: Sequence[BaseTunerLayer], name: str) -> Tensor:
    """Return a copy of a parameter of a layer with its adapters merged. The layer is as it was."""
    base = adapters[0].get_base_layer()
    before = {key: value.detach().clone() for key, value in base.named_parameters()}
    for adapter in adapters:
        adapter.merge()
    try:
        merged = base.get_parameter(name).detach()
        return merged.full_tensor() if isinstance(merged, DTensor) else merged.clone()
    finally:
        for adapter in adapters:
            adapter.unmerge()
        for key, value in before.items():
            base.get_parameter(key).copy_(value)


def saved_buffers(model: nn.Module) -> Named:
    """Yield names and values of what a checkpoint holds besides parameters: the engine may have it among its parameters."""
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        if name in saved:
            yield name.replace(".base_layer", ""), buffer


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


@contextmanager
def _unmerged(model: PeftModel) -> Iterator[None]:
    """Context manager in which merging and unmerging the whole model do nothing."""
    model.merge_adapter = model.unmerge_adapter = lambda *args, **kwargs: None
    try:
        yield
    finally:
        del model.merge_adapter, model.unmerge_adapter
