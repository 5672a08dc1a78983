"""What a run must have in common with its checkpoint for its place in the data and its rollout to be the same."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from datasets import Dataset

from ..base_config import GRPOVideoConfig

# They decide which rows a step sees and how a rollout is cut into updates.
SETTINGS = (
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "steps_per_generation",
    "num_iterations",
    "num_generations",
    "shuffle_dataset",
    "seed",
)
ROWS_READ = 1024

GO_ON = (
    "set ignore_data_skip=True to go on deliberately: with the weights, optimizer and step of the checkpoint, without its "
    "rollout, and with the rows from the start of an epoch"
)


def facts_of(config: GRPOVideoConfig, dataset: Any) -> dict[str, Any]:
    """Settings and data of a run, as they are held against those of its checkpoint."""
    return {
        "settings": {"processes": config.world_size, **{name: getattr(config, name) for name in SETTINGS}},
        "method": {f.name: str(getattr(config, f.name)) for f in _own_fields(config)} | {"kl": config.beta != 0},
        "rows": len(dataset) if hasattr(dataset, "__len__") else None,
        "digest": digest_of(dataset) if isinstance(dataset, Dataset) else None,
    }


def why_other(was: Mapping[str, Any], now: Mapping[str, Any], *, rollout_is_open: bool) -> str | None:
    """Why a run cannot go on where its checkpoint stands, and what to do; None where it can.

    Args:
        was, now: facts of the run that was saved and of this one.
        rollout_is_open: whether the checkpoint holds a rollout, made under the method's settings of then.
    """
    held = ("settings", "method") if rollout_is_open else ("settings",)
    for name, before, after in ((n, was[of].get(n), now[of].get(n)) for of in held for n in was[of] | now[of]):
        if before != after:
            return f"it was saved with {name} {before}, and this run has {after}. Set it as it was, or {GO_ON}"
    if was["rows"] != now["rows"]:
        return (
            f"it was saved on a data set of {was['rows']} rows, and this run's has {now['rows']}. Give it the same rows, "
            f"or {GO_ON}"
        )
    if was["digest"] != now["digest"]:
        return (
            f"it was saved on other rows than this run's, of the same number ({now['rows']}). Give it the same rows in the "
            f"same order, or {GO_ON}"
        )
    return None


def digest_of(dataset: Dataset) -> str:
    """A digest of a data set's rows in their order: of all of them, or of 1,024 at even distances, first and last too.

    Media are not decoded: a path counts as its text, bytes as their content.
    """
    count = len(dataset)
    wanted = min(count, ROWS_READ)
    places = [place * (count - 1) // max(wanted - 1, 1) for place in range(wanted)]
    digest = hashlib.sha256(repr(sorted(dataset.column_names)).encode())
    stored = dataset.with_format("arrow")
    for place in places:
        (row,) = stored[place : place + 1].to_pylist()
        digest.update(json.dumps(row, sort_keys=True, default=_in_text).encode())
    return digest.hexdigest()


def _in_text(value: Any) -> str:
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)


def _own_fields(config: GRPOVideoConfig) -> Sequence:
    """The fields of a method."""
    known = {f.name for f in fields(GRPOVideoConfig)}
    return [f for f in fields(config) if f.name not in known]
