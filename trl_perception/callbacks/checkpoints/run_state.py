"""What a checkpoint keeps of a run beside transformers' own files: written, held against the run that reads it, put back."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from safetensors.torch import load_file, load_model, save_file, save_model

from ...serialization import restore, store
from ..reporting.trackers import in_words
from .run_facts import RUN, facts_of, mismatch_reason

if TYPE_CHECKING:
    from ...trainers.grpo_video_trainer import GRPOVideoTrainer

logger = get_logger(__name__)

FORMAT = 2  # of these files
STATE = "rank{:05d}.json"  # a process's counters, metrics, open records, and the structure of its open rollout
ROLLOUT = "rank{:05d}.safetensors"  # the tensors of that rollout
REFERENCE = "reference.safetensors"  # a reference model that moves (`sync_ref_model`)


def write_state(trainer: "GRPOVideoTrainer", folder: Path) -> None:
    """Write this process's part, and on the process that saves what is of the whole run."""
    args, rank, is_open = trainer.args, trainer.args.process_index, rollout_is_open(trainer)
    folder.mkdir(parents=True, exist_ok=True)
    rollout, tensors = store(trainer._buffered_inputs if is_open else None)
    state = {
        "micro_steps": trainer._step,
        "sampled_at_step": trainer._sampled_at_step,
        "packs": trainer._forwards.packs,
        "skipped_in_a_row": trainer._guard.skipped_in_a_row,
        "metrics": {name: [float(value) for value in values] for name, values in trainer._metrics["train"].items()},
        "loss": trainer._tr_loss.item(),
        "logged_at_step": trainer._globalstep_last_logged,
        "completions": _completions_to_log(trainer),
        "records": trainer._records.state(is_open),
        "rollout": rollout,
    }
    if tensors:
        save_file(tensors, folder / ROLLOUT.format(rank))
    (folder / STATE.format(rank)).write_text(json.dumps(state))
    if not args.should_save:
        return
    if reference_moves(trainer):
        save_model(trainer.accelerator.unwrap_model(trainer.ref_model), str(folder / REFERENCE))
    about = {
        "format": FORMAT,
        "step": trainer.state.global_step,
        "rollout_is_open": is_open,
        "only_model": args.save_only_model,
        **facts_of(trainer),
    }
    (folder / RUN).write_text(json.dumps(about, indent=1))


def read_state(trainer: "GRPOVideoTrainer", folder: Path) -> dict[str, Any]:
    """What this process is to go on with; nothing is changed yet but the records' next folder.

    Returns: `folder`, `state` as it was written, and `anew`, whether the rows begin at the start of an epoch.
    Errors: ValueError where the checkpoint does not fit this run.
    """
    about, anew = json.loads((folder / RUN).read_text()), trainer.args.ignore_data_skip
    if about.get("format") != FORMAT:
        raise ValueError(
            f"{folder} was written by another version of this package (format {about.get('format')}; {FORMAT} is wanted). "
            "Resume with that version, or set model_name_or_path to it to start anew with its weights."
        )
    if about["only_model"]:
        raise ValueError(
            f"{folder} holds weights alone (save_only_model), and training cannot go on from it. Set model_name_or_path to "
            "it to start anew with these weights, and save_only_model=False where runs are to be resumed."
        )
    other = mismatch_reason(about, facts_of(trainer), rollout_is_open=about["rollout_is_open"])
    if other is not None and not anew:
        raise ValueError(f"{folder} does not fit this run: {other}.")
    trainer.accelerator.print(f"resuming from {folder.name} of {trainer._name} ({folder})")
    if reference_moves(trainer) and not (folder / REFERENCE).is_file():
        raise ValueError(f"{folder} has no {REFERENCE}, and sync_ref_model is set: it was saved without. Unset it.")
    path = folder / STATE.format(trainer.args.process_index)
    state = json.loads(path.read_text()) if path.is_file() else {}  # more processes than there were, deliberately
    if anew:
        logger.warning(
            f"ignore_data_skip is set: the run goes on from {folder} with the rows from the start of an epoch"
            + (f", although {other.split('. ')[0]}." if other else ".")
        )
    if state.get("records") is not None:
        trainer._records.resume(state["records"], with_open=not anew)
    return {"folder": folder, "state": state, "anew": anew}


def go_on(trainer: "GRPOVideoTrainer", resumed: Mapping[str, Any]) -> None:
    """Put everything into its place, after transformers has put its own."""
    folder, state, device = resumed["folder"], resumed["state"], trainer.accelerator.device
    if reference_moves(trainer):
        load_model(trainer.accelerator.unwrap_model(trainer.ref_model), str(folder / REFERENCE), device=str(device))
    if resumed["anew"]:
        done, every = trainer.state.global_step * trainer.args.gradient_accumulation_steps, _steps_a_rollout(trainer)
        trainer._step, trainer._buffered_inputs = -(-done // every) * every, None
        return
    trainer._step, trainer._sampled_at_step = state["micro_steps"], state["sampled_at_step"]
    path = folder / ROLLOUT.format(trainer.args.process_index)
    tensors = load_file(path) if path.is_file() else {}
    trainer._buffered_inputs = restore(state["rollout"], tensors, device)
    trainer._forwards.packs = state["packs"]
    trainer._guard.skipped_in_a_row = state["skipped_in_a_row"]
    trainer._metrics["train"].clear()
    trainer._metrics["train"].update(state["metrics"])
    trainer._tr_loss += state["loss"]
    trainer._total_loss_scalar -= state["loss"]  # the mean that ends a run is of the steps since it was resumed
    trainer._globalstep_last_logged = state["logged_at_step"]
    if trainer.log_completions and state["completions"] is not None:
        _fill_logs(trainer._logs, state["completions"])


def rollout_is_open(trainer: "GRPOVideoTrainer") -> bool:
    """Whether updates are still to be made on the rollout in hand."""
    return trainer._step % _steps_a_rollout(trainer) != 0


def reference_moves(trainer: "GRPOVideoTrainer") -> bool:
    """Whether the reference model is another one than a run begins with."""
    return trainer.args.sync_ref_model and trainer.ref_model is not None


def _steps_a_rollout(trainer: "GRPOVideoTrainer") -> int:
    return trainer.args.steps_per_generation * trainer.num_iterations


def _completions_to_log(trainer: "GRPOVideoTrainer") -> dict[str, Any] | None:
    """The completions table of the rollout in hand; pictures are not kept."""
    if not trainer.log_completions:
        return None
    logs = {name: _plain(trainer._logs[name]) for name in ("completion", "advantages", "rewards", "extra")}
    return {**logs, "prompt": _plain([in_words(prompt) for prompt in trainer._logs["prompt"]])}


def _fill_logs(logs: dict[str, Any], completions: Mapping[str, Any]) -> None:
    for name in ("prompt", "completion", "advantages"):
        logs[name].extend(completions[name])
    for name in ("rewards", "extra"):
        for column, values in completions[name].items():
            logs[name][column].extend(values)


def _plain(values: Any) -> Any:
    """What a table shows, as JSON: a value of a reward's own that JSON does not know becomes its text."""
    return json.loads(json.dumps(values, default=lambda value: list(value) if _is_run(value) else str(value)))


def _is_run(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, bytes | torch.Tensor)
