"""What a run must have in common with its checkpoint for its place in the data and its rollout to be the same."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset

if TYPE_CHECKING:
    from ...trainers.grpo_video_trainer import GRPOVideoTrainer

RUN = "run.json"  # in the output folder whose run it is, and in a checkpoint what a run must have in common with it
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


def facts_of(trainer: "GRPOVideoTrainer") -> dict[str, Any]:
    """Trainer, settings and data of a run, as they are compared with those of its checkpoint."""
    config, dataset = trainer.args, trainer.train_dataset
    return {
        "trainer": type(trainer).__name__,
        "settings": {"processes": config.world_size, **{name: getattr(config, name) for name in SETTINGS}},
        "method": {name: str(value) for name, value in config.method_settings().items()} | {"kl": config.beta != 0},
        "rows": len(dataset) if hasattr(dataset, "__len__") else None,
        "digest": digest_of(dataset) if isinstance(dataset, Dataset) else None,
    }


def identity_of(trainer: "GRPOVideoTrainer") -> dict[str, Any]:
    """What tells a run from another one that would write into the same folder."""
    origin, rows = trainer.origin, trainer.train_dataset
    model = trainer.model.config._name_or_path if origin is None else origin.base
    return {
        "trainer": type(trainer).__name__,
        "recipe": None if origin is None else origin.name,
        "model": Path(model).name,
        "rewards": list(trainer.reward_func_names),
        "rows": digest_of(rows) if isinstance(rows, Dataset) else None,
    }


def require_own_folder(trainer: "GRPOVideoTrainer", *, resuming: bool) -> None:
    """Refuse an output folder that another run has claimed; claim it where this run will leave something behind.

    Args: resuming: whether the run resumes; its checkpoint then judges the rows.
    Errors: ValueError with what differs and what to do.
    """
    path, now = Path(trainer.args.output_dir) / RUN, identity_of(trainer)
    was = json.loads(path.read_text()) if path.is_file() else {}
    for name in (name for name in was if not (resuming and name == "rows")):
        if was[name] != now.get(name):
            differ = (
                "it was trained on other rows"
                if name == "rows"
                else f"its {name} is {was[name]}, this run's {now.get(name)}"
            )
            raise ValueError(
                f"{path.parent} holds another run: {differ}. Set output_dir to another folder, or take {path.parent} away if that "
                "run is not wanted any more."
            )
    trainer.accelerator.wait_for_everyone()
    leaves_something = trainer.args.save_strategy != "no" or trainer.args.report_every or trainer.origin is not None
    if trainer.args.should_save and leaves_something:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(now, indent=1))


def mismatch_reason(was: Mapping[str, Any], now: Mapping[str, Any], *, rollout_is_open: bool) -> str | None:
    """Why a run cannot go on where its checkpoint stands, and what to do; None where it can.

    Args:
        was, now: facts of the run that was saved and of this one.
        rollout_is_open: whether the checkpoint holds a rollout, made under the method's settings of then.
    """
    if (before := was.get("trainer", now["trainer"])) != now["trainer"]:
        return (
            f"it is a checkpoint of {before}, and this run trains with {now['trainer']}. Set trainer as it was, or "
            "model_name_or_path to the checkpoint to start a run with its weights"
        )
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
