"""A rollout in hand as JSON and tensors, and back: nothing in it is pickled, and nothing is run when it is read."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ..media import VisualInputs

PLAIN = (bool, int, float, str, type(None))


def pack(value: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Nested lists and dictionaries of tensors, visual inputs and plain values -> (JSON, tensors by name).

    What is one object stays one object, as the rows of a group must share their visual inputs.

    Errors: TypeError, with the place, for anything else.
    """
    packer = _Packer()
    tree = packer.tree(value, "rollout")
    return {"tree": tree, "visual_inputs": packer.visuals}, packer.tensors


def unpack(packed: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device) -> Any:
    """What was packed, on `device`, but for tensors that were in host memory."""
    cache: dict[str, Tensor] = {}

    def of_tensor(name: str, host: bool) -> Tensor:
        if name not in cache:
            cache[name] = tensors[name] if host else tensors[name].to(device)
        return cache[name]

    def of_tree(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        ((kind, value),) = tree.items()
        if kind == "list":
            return [of_tree(item) for item in value]
        if kind == "dict":
            return {key: of_tree(item) for key, item in value.items()}
        return of_tensor(*value) if kind == "tensor" else visuals[value]

    visuals = [
        VisualInputs(**{name: of_tree(tree) for name, tree in of_one.items()}) for of_one in packed["visual_inputs"]
    ]
    return of_tree(packed["tree"])


class _Packer:
    def __init__(self):
        self.tensors: dict[str, Tensor] = {}
        self.visuals: list[dict[str, Any]] = []
        self._places: dict[int, tuple[Any, Any]] = {}  # by id: the object, which keeps the id its own, and its place

    def tree(self, value: Any, where: str) -> Any:
        if isinstance(value, PLAIN):
            return value
        if isinstance(value, list | tuple):
            return {"list": [self.tree(item, f"{where}[{i}]") for i, item in enumerate(value)]}
        if isinstance(value, Mapping):
            return {"dict": {key: self.tree(item, f"{where}.{key}") for key, item in value.items()}}
        if id(value) not in self._places:
            self._places[id(value)] = value, self._place(value, where)
        return self._places[id(value)][1]

    def _place(self, value: Any, where: str) -> dict[str, Any]:
        if isinstance(value, Tensor):
            name = str(len(self.tensors))
            # A copy: safetensors takes no views that share their memory.
            self.tensors[name] = value.detach().to("cpu", copy=True).contiguous()
            return {"tensor": [name, value.device.type == "cpu"]}
        if isinstance(value, VisualInputs):
            packed = {f.name: self.tree(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value)}
            self.visuals.append(packed)
            return {"visual_inputs": len(self.visuals) - 1}
        raise TypeError(
            f"{where} is a {type(value).__name__}, which a checkpoint cannot hold. What travels with a rollout (see "
            "rollout_signals) are tensors, numbers and texts, in lists or dictionaries."
        )
