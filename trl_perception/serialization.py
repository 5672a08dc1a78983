"""Nested values of a rollout as JSON and tensors, and back. Nothing is pickled, so that reading runs no code."""

import json
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .batch import Group
from .media import PreparedPrompt, VisualInputs
from .media.errors import describe

OBJECTS = {kind.__name__: kind for kind in (VisualInputs, PreparedPrompt, Group)}
# Of a prepared prompt: decoded media, beside the visual inputs that the model sees; and what is for a reader alone.
LEFT_OUT, IN_WORDS = ("images", "frames", "preparer"), ("row", "messages", "logged")


def store(value: Any, *, unknown: list[str] | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Nested lists and dictionaries of tensors, plain values and the objects of a rollout -> (JSON, tensors by name).

    What is one object stays one object, as the rows of a group must share their visual inputs.

    Args:
        unknown: gets the place and type of anything else, which then becomes None.
    Errors: TypeError, with the place, for anything else where nobody wants to know.
    """
    writer = _Writer(unknown)
    tree = writer.tree(value, "rollout")
    return {"tree": tree, "objects": writer.objects}, writer.tensors


def restore(stored: Mapping[str, Any], tensors: Mapping[str, Tensor], device: torch.device | str) -> Any:
    """What was stored, on `device`, but for tensors that were in host memory."""
    return _Reader(stored["objects"], tensors, device).value(stored["tree"])


def readable(value: Any) -> Any:
    """The value as JSON; numbers that are not finite, and objects that JSON does not know, become text."""
    if isinstance(value, Mapping):
        return {str(key): readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [readable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, str):
        return describe(value) if value.startswith("data:") else value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return type(value).__name__ if is_dataclass(value) else describe(value)


class _Writer:
    def __init__(self, unknown: list[str] | None):
        self.tensors: dict[str, Tensor] = {}
        self.objects: list[dict[str, Any]] = []
        self._unknown = unknown
        self._places: dict[int, tuple[Any, Any]] = {}  # by id: the object, which keeps the id its own, and its place

    def tree(self, value: Any, where: str) -> Any:
        if isinstance(value, list | tuple):
            return [self.tree(item, f"{where}[{i}]") for i, item in enumerate(value)]
        if isinstance(value, Mapping):
            return {"dict": {str(key): self.tree(item, f"{where}.{key}") for key, item in value.items()}}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": repr(value)}
        if value is None or isinstance(value, str | int | float):
            return value
        if id(value) not in self._places:
            self._places[id(value)] = value, self._place(value, where)
        return self._places[id(value)][1]

    def _place(self, value: Any, where: str) -> dict[str, Any] | None:
        if isinstance(value, Tensor) and value.is_meta:  # pixels that were let go
            return {"meta": where, "shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        if isinstance(value, Tensor):
            name = f"{len(self.tensors)}.{where.partition('.')[2]}"
            # A copy: safetensors takes no views that share their memory.
            self.tensors[name] = value.detach().to("cpu", copy=True).contiguous()
            return {"tensor": name, "host": value.device.type == "cpu"}
        if type(value) in OBJECTS.values():
            return self._object(value, where)
        if self._unknown is None:
            raise TypeError(
                f"{where} is a {type(value).__name__}, which a checkpoint cannot hold. What travels with a rollout (see "
                "rollout_signals) are tensors, numbers and texts, in lists or dictionaries."
            )
        self._unknown.append(f"{where} ({type(value).__name__})")
        return None

    def _object(self, value: Any, where: str) -> dict[str, Any]:
        values = {f.name: getattr(value, f.name) for f in fields(value)}
        if isinstance(value, PreparedPrompt):
            values = {
                name: readable(item) if name in IN_WORDS else item
                for name, item in values.items()
                if name not in LEFT_OUT
            }
        stored = {name: self.tree(item, f"{where}.{name}") for name, item in values.items()}
        self.objects.append({"class": type(value).__name__, "fields": stored})
        return {"object": len(self.objects) - 1}


class _Reader:
    def __init__(self, objects: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor], device: torch.device | str):
        self.objects, self.tensors, self.device = objects, tensors, device
        self._made: dict[int, Any] = {}
        self._moved: dict[str, Tensor] = {}

    def value(self, tree: Any) -> Any:
        if isinstance(tree, list):
            return [self.value(item) for item in tree]
        if not isinstance(tree, dict):
            return tree
        if "tensor" in tree:
            return self._tensor(tree["tensor"], tree["host"])
        if "meta" in tree:
            empty = torch.empty(tree["shape"], dtype=getattr(torch, tree["dtype"]), device="meta")
            return self._moved.setdefault(tree["meta"], empty)  # one object where it was one
        if "object" in tree:
            return self._object(tree["object"])
        if "float" in tree:
            return float(tree["float"])
        return {key: self.value(item) for key, item in tree["dict"].items()}

    def _tensor(self, name: str, host: bool) -> Tensor:
        if name not in self._moved:
            self._moved[name] = self.tensors[name] if host else self.tensors[name].to(self.device)
        return self._moved[name]

    def _object(self, index: int) -> Any:
        if index not in self._made:
            stored = self.objects[index]
            values = {name: self.value(item) for name, item in stored["fields"].items()}
            self._made[index] = OBJECTS[stored["class"]](**values)
        return self._made[index]


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of all random generators that a loss may draw from."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    state = {
        "python": random.getstate(),
        "numpy": [name, keys.tolist(), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators back to where [`random_state`] found them."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


def write_dump(folder: str | os.PathLike, values: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write nested values (tensors, lists, dictionaries, what a rollout is made of) and facts for a reader.

    Objects that have no place in it are named in `facts.json` under `not_kept`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    not_kept: list[str] = []
    stored, tensors = store(values, unknown=not_kept)
    save_file(tensors, folder / "tensors.safetensors")
    _write_json(folder / "inputs.json", {**stored, "not_kept": not_kept})
    _write_json(folder / "facts.json", readable({**facts, "not_kept": not_kept}))


def read_dump(folder: str | os.PathLike, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The values that [`write_dump`] wrote, with one object wherever there was one.

    Errors: ValueError where something of them could not be written.
    """
    folder = Path(folder)
    stored = json.loads((folder / "inputs.json").read_text())
    if stored["not_kept"]:
        raise ValueError(
            f"{folder} lacks {', '.join(stored['not_kept'])}: a dump holds tensors, numbers, text, lists and dictionaries. "
            "Let rollout_signals return tensors."
        )
    return restore(stored, load_file(folder / "tensors.safetensors"), device)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8")


@contextmanager
def random_numbers_of(state: dict[str, Any], device: torch.device) -> Iterator[None]:
    """Context manager in which the random generators are in a dumped state."""
    before = random_state(device)
    set_random_state(state, device)
    try:
        yield
    finally:
        set_random_state(before, device)
