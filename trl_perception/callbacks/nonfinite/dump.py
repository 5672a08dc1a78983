"""Writes a micro-batch with all that its loss depends on to a folder, and reads it back.

The folder holds `facts.json` (what was found, in which samples, under which settings; for a reader), and `inputs.json` with
`tensors.safetensors` (the micro-batch and its random state; for [`~trl_perception.trainers.replay`]).
"""

import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ...batch import Rollout
from ...media import media_columns
from ...media.prompts import sample_name
from ...serialization import readable, restore, store


def samples(rollout: Rollout, reward_names: Sequence[str]) -> list[dict[str, Any]]:
    """The sample of each row of a rollout as JSON: name, prompt, media and rewards."""
    rewards = rollout.rewards_per_func.tolist()
    known: dict[int, dict[str, Any]] = {}
    found = []
    for index, (row, prompt, scores) in enumerate(zip(rollout.rows, rollout.prompts, rewards, strict=True)):
        if id(prompt) not in known:
            media = [readable(medium) for of_kind in media_columns(row).values() for medium in of_kind]
            known[id(prompt)] = {
                "name": sample_name(row, index),
                "prompt": readable(row.get("prompt")),
                "media": media,
                "left_out": prompt.left_out,
            }
        found.append({**known[id(prompt)], "rewards": dict(zip(reward_names, scores, strict=True))})
    return found


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
