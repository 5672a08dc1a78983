"""What a checkpoint keeps of a run beside transformers' own files: written and read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, load_model, save_file
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from trl.trainer.utils import RepeatSampler

from ...reports.weights_page import in_words
from ...serialization import restore, store

STATE = "rank{:05d}.json"  # a process's counters, metrics, open records, and the structure of its open rollout
ROLLOUT = "rank{:05d}.safetensors"  # the tensors of that rollout
REFERENCE = "reference.safetensors"  # a reference model that moves (`sync_ref_model`)


def write_state(folder: Path, rank: int, state: Mapping[str, Any]) -> None:
    """Write a process's state: JSON, but for `rollout`, the micro-batches that updates are still to be made on, or None."""
    folder.mkdir(parents=True, exist_ok=True)
    rollout, tensors = store(state["rollout"])
    if tensors:
        save_file(tensors, folder / ROLLOUT.format(rank))
    (folder / STATE.format(rank)).write_text(json.dumps({**state, "rollout": rollout}, default=_plain))


def read_state(folder: Path, rank: int) -> dict[str, Any]:
    """The JSON of [`write_state`]; empty where the run has more processes than the one that was saved."""
    path = folder / STATE.format(rank)
    return json.loads(path.read_text()) if path.is_file() else {}


def restore_state(folder: Path, rank: int, device: torch.device, reference: nn.Module | None) -> dict[str, Any]:
    """The state of [`write_state`], with its rollout on `device`; loads the reference model that moves."""
    if reference is not None:
        load_model(reference, str(folder / REFERENCE), device=str(device))
    state, path = read_state(folder, rank), folder / ROLLOUT.format(rank)
    if state:
        state["rollout"] = restore(state["rollout"], load_file(path) if path.is_file() else {}, device)
    return state


def load_weights(model: PreTrainedModel, folder: str) -> None:
    """Load weights by the names under which they are saved, which are the first ones of the model's family.

    transformers' trainer looks for the names that the modules have now, finds only the head of Qwen2.5-VL, and leaves the other
    weights as they were when the run began.
    """
    dtypes = {parameter.dtype for parameter in model.parameters()}
    saved = type(model).from_pretrained(folder, dtype=dtypes.pop() if len(dtypes) == 1 else torch.float32)
    model.load_state_dict(saved.state_dict())


def skip_epochs(loader: DataLoader, count: int) -> None:
    """Draw the orders of the epochs that were trained: TRL's sampler draws each from one generator, which starts again."""
    batches = loader.batch_sampler  # accelerate wraps it where there are several processes
    sampler = getattr(getattr(batches, "batch_sampler", batches), "sampler", None)
    for _ in range(count if isinstance(sampler, RepeatSampler) and sampler.shuffle else 0):
        torch.randperm(sampler.num_samples, generator=sampler.generator)


def logged_completions(logs: Mapping[str, Any]) -> dict[str, Any]:
    """TRL's table of completions without pictures: lists, and dictionaries of lists."""
    kept = {name: logs[name] for name in ("completion", "advantages", "rewards", "extra")}
    return {**kept, "prompt": [in_words(prompt) for prompt in logs["prompt"]]}


def restore_completions(logs: Mapping[str, Any], completions: Mapping[str, Any]) -> None:
    """Append completions of [`logged_completions`] to TRL's table."""
    for name, values in completions.items():
        if isinstance(values, dict):
            restore_completions(logs[name], values)
        else:
            logs[name].extend(values)


def _plain(value: Any) -> Any:
    """For JSON: sequences as lists, any other value of a reward's own as its text."""
    is_sequence = hasattr(value, "__iter__") and not isinstance(value, bytes | torch.Tensor)
    return list(value) if is_sequence else str(value)
