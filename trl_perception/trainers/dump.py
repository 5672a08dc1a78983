"""A micro-batch on disk with all that its loss depends on, and the way back.

A folder of a dump holds `facts.json` (what was found, in which samples, under which settings; for reading), `inputs.json`
with `tensors.safetensors` (the micro-batch, its random state; for [`~trl_perception.trainers.nonfinite.replay`]).
"""

import json
import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..media import PreparedPrompt, VisualInputs, media_columns
from ..media.errors import describe
from ..media.prompts import sample_name
from .rollout import Group, Rollout

KEPT_OBJECTS = {kind.__name__: kind for kind in (VisualInputs, PreparedPrompt, Group)}
FOR_LOGS_ONLY = ("images", "frames")  # decoded media of a prepared prompt; its visual inputs are what the model sees
FOR_READING = ("row", "messages", "logged")  # what may hold objects that have no place in JSON


def samples(rollout: Rollout, reward_names: Sequence[str]) -> list[dict[str, Any]]:
    """What tells of each row of a rollout which sample it is: name, prompt, media and rewards, fit for JSON."""
    rewards = rollout.rewards_per_func.tolist()
    known: dict[int, dict[str, Any]] = {}
    told = []
    for index, (row, prompt, scores) in enumerate(zip(rollout.rows, rollout.prompts, rewards, strict=True)):
        if id(prompt) not in known:
            media = [_readable(medium) for of_kind in media_columns(row).values() for medium in of_kind]
            known[id(prompt)] = {
                "name": sample_name(row, index),
                "prompt": _readable(row.get("prompt")),
                "media": media,
                "left_out": prompt.left_out,
            }
        told.append({**known[id(prompt)], "rewards": dict(zip(reward_names, scores, strict=True))})
    return told


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of all generators that a loss may draw from."""
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
    writer = _Writer()
    tree = writer.node(values, "")
    save_file(writer.tensors, folder / "tensors.safetensors")
    _write_json(folder / "inputs.json", {"values": tree, "objects": writer.objects, "not_kept": writer.not_kept})
    _write_json(folder / "facts.json", _readable({**facts, "not_kept": writer.not_kept}))


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
    tensors = load_file(folder / "tensors.safetensors", device=str(device))
    return _Reader(tensors, stored["objects"]).value(stored["values"])


class _Writer:
    """Nested values as JSON; each tensor and each object once, however often it is met."""

    def __init__(self):
        self.tensors: dict[str, Tensor] = {}
        self.objects: list[dict[str, Any]] = []
        self.not_kept: list[str] = []
        self._known: dict[int, Any] = {}

    def node(self, value: Any, path: str) -> Any:
        if id(value) in self._known:
            return self._known[id(value)]
        if isinstance(value, Tensor):
            name = f"{len(self.tensors)}{path}"
            self.tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            self._known[id(value)] = node = {"tensor": name}
            return node
        if type(value) in KEPT_OBJECTS.values():
            return self._object(value, path)
        if isinstance(value, Mapping):
            return {"dict": {str(key): self.node(item, f"{path}.{key}") for key, item in value.items()}}
        if isinstance(value, list | tuple):
            return [self.node(item, f"{path}.{index}") for index, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": repr(value)}
        if value is not None and not isinstance(value, str | int | float):
            self.not_kept.append(f"{path.lstrip('.')} ({type(value).__name__})")
            return None
        return value

    def _object(self, value: Any, path: str) -> dict[str, int]:
        index = len(self.objects)
        self._known[id(value)] = node = {"object": index}
        self.objects.append({"class": type(value).__name__})
        kept = [f.name for f in fields(value) if f.name not in FOR_LOGS_ONLY or not isinstance(value, PreparedPrompt)]
        self.objects[index]["fields"] = {
            name: self.node(_readable(getattr(value, name)) if name in FOR_READING else getattr(value, name), path)
            for name in kept
        }
        return node


class _Reader:
    def __init__(self, tensors: Mapping[str, Tensor], objects: Sequence[Mapping[str, Any]]):
        self.tensors, self.objects = tensors, objects
        self._made: dict[int, Any] = {}

    def value(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.value(item) for item in node]
        if not isinstance(node, dict):
            return node
        ((kind, inner),) = node.items()
        if kind == "tensor":
            return self.tensors[inner]
        if kind == "float":
            return float(inner)
        if kind == "dict":
            return {key: self.value(item) for key, item in inner.items()}
        if inner not in self._made:
            stored = self.objects[inner]
            values = {name: self.value(item) for name, item in stored["fields"].items()}
            self._made[inner] = KEPT_OBJECTS[stored["class"]](**values)
        return self._made[inner]


def _readable(value: Any) -> Any:
    """The value as JSON has it; numbers that are not finite, and whatever else has no place there, in words."""
    if isinstance(value, Mapping):
        return {str(key): _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, str):
        return describe(value) if value.startswith("data:") else value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return type(value).__name__ if is_dataclass(value) else describe(value)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False), encoding="utf-8")
