"""What a run must have in common with its output folder and with the checkpoint that it resumes from."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import nn

from ...reports.card_facts import Origin

RUN = "run.json"  # in the output folder whose run it is, and in a checkpoint what a run must have in common with it
FORMAT = 2  # of a checkpoint's files that are written here
ROWS_READ = 1024
# They decide which rows a step sees and how a rollout is cut into updates.
SETTINGS = ("per_device_train_batch_size", "gradient_accumulation_steps", "steps_per_generation", "num_iterations")
SETTINGS += ("num_generations", "shuffle_dataset", "seed")

RESUME_ANYWAY = (
    "set ignore_data_skip=True to resume deliberately: with the weights, optimizer and step of the checkpoint, without its "
    "rollout, and with the rows from the start of an epoch"
)


def facts_of(trainer: str, args: Any, dataset: Any) -> dict[str, Any]:
    """Trainer (its class's name), settings and rows of a run, as they are compared with those of its checkpoint."""
    return {
        "trainer": trainer,
        "settings": {"processes": args.world_size, **{name: getattr(args, name) for name in SETTINGS}},
        "method": {name: str(value) for name, value in args.method_settings().items()} | {"kl": args.beta != 0},
        "rows": len(dataset) if hasattr(dataset, "__len__") else None,
        "digest": digest_of(dataset),
    }


def identity_of(trainer: str, origin: Origin | None, model: nn.Module, rewards: list[str], rows: Any) -> dict[str, Any]:
    """What distinguishes a run from another one that would write into the same folder."""
    base = model.config._name_or_path if origin is None else origin.base
    names = {"trainer": trainer, "recipe": origin and origin.name, "model": Path(base).name, "rewards": list(rewards)}
    return {**names, "rows": digest_of(rows)}


def mismatch_reason(was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Returns the reason why a run cannot resume where a checkpoint stands, with what to do, or None.

    Args:
        was: what the checkpoint holds: its run's facts, and whether a rollout is open, which the method's settings have shaped.
        now: [`facts_of`] this run.
    """
    if (before := was.get("trainer", now["trainer"])) != now["trainer"]:
        return (
            f"it is a checkpoint of {before}, and this run trains with {now['trainer']}. Set trainer as it was, or "
            "model_name_or_path to the checkpoint to start a run with its weights"
        )
    compared = ("settings", "method") if was["rollout_is_open"] else ("settings",)
    values = ((name, was[of].get(name), now[of].get(name)) for of in compared for name in was[of] | now[of])
    if other := next((value for value in values if value[1] != value[2]), None):
        reason = f"it was saved with {other[0]} {other[1]}, and this run has {other[2]}. Set it as it was"
    elif (before := was["rows"]) != (after := now["rows"]):
        reason = f"it was saved on a data set of {before} rows, and this run's has {after}. Give it the same rows"
    elif was["digest"] != now["digest"]:
        reason = f"it was saved on other rows than this run's, of the same number ({after}). Give it the same rows in their order"
    else:
        return None
    return f"{reason}, or {RESUME_ANYWAY}"


def digest_of(dataset: Any) -> str | None:
    """A digest of a data set's rows in their order: of all of them, or of 1,024 at even distances, first and last too.

    Media are not decoded: a path counts as its text, bytes as their content. None for streams and other kinds of data.
    """
    if not isinstance(dataset, Dataset):
        return None
    count = len(dataset)
    read = min(count, ROWS_READ)
    digest = hashlib.sha256(repr(sorted(dataset.column_names)).encode())
    stored = dataset.with_format("arrow")
    for index in range(read):
        place = index * (count - 1) // max(read - 1, 1)
        (row,) = stored[place : place + 1].to_pylist()
        digest.update(json.dumps(row, sort_keys=True, default=_in_text).encode())
    return digest.hexdigest()


def _in_text(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)
