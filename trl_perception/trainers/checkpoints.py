"""Checkpoints: complete or not there, and with everything that a run needs to go on as if it had never stopped."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from safetensors.torch import load_file, load_model, save_file, save_model
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl import GRPOTrainer

from .checkpoint_folder import UNFINISHED, clear_unfinished, finish, to_resume
from .disk import DiskFullError, told_when_full
from .packing import pack, unpack
from .run_facts import facts_of, why_other
from .trackers import in_words

logger = get_logger(__name__)

RUN = "run.json"  # what the run must have in common with the checkpoint, written once
STATE = "rank{:05d}.json"  # a process's counters, metrics, open records, and the structure of its open rollout
ROLLOUT = "rank{:05d}.safetensors"  # the tensors of that rollout
FORMAT = 1  # of these files
REFERENCE = "reference.safetensors"  # a reference model that moves (`sync_ref_model`)


class Checkpoints(GRPOTrainer):
    """TRL's trainer with checkpoints that a run can be killed beside.

    transformers keeps weights, optimizer, schedule, random state and step. Here come the rollout that updates are still to
    be made on, the order of the data in later epochs, counters, metrics and losses not yet logged, records, and a
    reference model that moves.
    """

    _saving_in: Path | None = None
    _to_push: bool = False
    _resumed: dict[str, Any] | None = None
    _train_sampler: Any = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As in transformers. Resuming from True takes the last complete checkpoint of the output folder.

        Errors: ValueError where there is none, where the one that is named is damaged or not complete, and where it does
        not fit this run: other processes, batches, seed or rows (`ignore_data_skip=True` goes on nevertheless).
        """
        run = Path(self.args.output_dir)
        self._refuse_references_out_of_reach()
        if self.args.should_save:
            for said in clear_unfinished(run):
                logger.warning(said)
        self.accelerator.wait_for_everyone()
        wanted = {"true": True, "false": None}.get(str(resume_from_checkpoint).lower(), resume_from_checkpoint)
        self._resumed = None
        if wanted:
            folder, passed = to_resume(run, wanted)
            for said in passed:
                logger.warning(said)
            self._resumed = self._read(folder)
            wanted = os.fspath(folder)
        return super().train(wanted, *args, **kwargs)

    # Writing

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        run, name = Path(self._get_output_dir(trial)), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        draft, final = run / UNFINISHED / name, run / name
        if self.args.should_save:
            clear_unfinished(run)
        self.accelerator.wait_for_everyone()
        advice = (
            f"Checkpoints that are complete stay as they were. Make room, lower save_total_limit (now "
            f"{self.args.save_total_limit}), or set output_dir to another disk, then resume_from_checkpoint: true."
        )
        self._saving_in = draft.parent
        try:
            with told_when_full(draft, f"Step {self.state.global_step}: the checkpoint {final}", advice):
                super()._save_checkpoint(model, trial)
                self._name_the_best(draft, final)
                self._write(draft)
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    finish(draft, final)
        except DiskFullError:
            shutil.rmtree(draft, ignore_errors=True)  # gives its room back
            raise
        finally:
            self._saving_in = None
        if self.args.should_save:
            limit, best = self.args.save_total_limit, self.state.best_model_checkpoint
            rotate_checkpoints(output_dir=str(run), save_total_limit=limit, best_model_checkpoint=best, use_mtime=True)
        self.accelerator.wait_for_everyone()
        if self._to_push:
            self._to_push = False
            self._push_from_checkpoint(str(final))

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._saving_in is None else str(self._saving_in)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._saving_in is None:
            super()._push_from_checkpoint(checkpoint_folder)
        else:
            self._to_push = True  # once it has its name: uploads run on behind

    def _name_the_best(self, draft: Path, final: Path) -> None:
        """The best checkpoint by the name that it will have, where it is the one that is being written."""
        if self.state.best_model_checkpoint == str(draft):
            self.state.best_model_checkpoint = str(final)
            if self.args.should_save:
                self.state.save_to_json(str(draft / TRAINER_STATE_NAME))

    def _write(self, folder: Path) -> None:
        """This process's part of what transformers does not keep."""
        rank = self.args.process_index
        folder.mkdir(parents=True, exist_ok=True)
        rollout, tensors = pack(self._buffered_inputs if self._rollout_is_open else None)
        state = {
            "micro_steps": self._step,
            "sampled_at_step": self._sampled_at_step,
            "packs": self._forwards.packs,
            "metrics": {name: [float(value) for value in values] for name, values in self._metrics["train"].items()},
            "loss": self._tr_loss.item(),
            "logged_at_step": self._globalstep_last_logged,
            "completions": self._completions_to_log(),
            "records": None if self._records is None else self._records.state(self._rollout_is_open),
            "rollout": rollout,
        }
        if tensors:
            save_file(tensors, folder / ROLLOUT.format(rank))
        (folder / STATE.format(rank)).write_text(json.dumps(state))
        if not self.args.should_save:
            return
        if self._reference_moves:
            save_model(self.accelerator.unwrap_model(self.ref_model), str(folder / REFERENCE))
        about = {
            "format": FORMAT,
            "step": self.state.global_step,
            "rollout_is_open": self._rollout_is_open,
            "only_model": self.args.save_only_model,
            **facts_of(self.args, self.train_dataset),
        }
        (folder / RUN).write_text(json.dumps(about, indent=1))

    def _completions_to_log(self) -> dict[str, Any] | None:
        """The completions table of the rollout in hand; pictures are not kept."""
        if not self.log_completions:
            return None
        logs = {name: _plain(self._logs[name]) for name in ("completion", "advantages", "rewards", "extra")}
        return {**logs, "prompt": _plain([in_words(prompt) for prompt in self._logs["prompt"]])}

    # Reading

    def _read(self, folder: Path) -> dict[str, Any]:
        """What this process is to go on with; nothing is changed yet but the records' next folder.

        Errors: ValueError where the checkpoint does not fit this run.
        """
        about = json.loads((folder / RUN).read_text())
        if about.get("format") != FORMAT:
            raise ValueError(
                f"{folder} was written by another version of this package (format {about.get('format')}; {FORMAT} is wanted). "
                "Resume with that version, or set model_name_or_path to it to start anew with its weights."
            )
        if about["only_model"]:
            raise ValueError(
                f"{folder} holds weights alone (save_only_model), and training cannot go on from it. Set "
                "model_name_or_path to it to start anew with these weights, and save_only_model=False where runs are to "
                "be resumed."
            )
        anew = self.args.ignore_data_skip
        other = why_other(about, facts_of(self.args, self.train_dataset), rollout_is_open=about["rollout_is_open"])
        if other is not None and not anew:
            raise ValueError(f"{folder} does not fit this run: {other}.")
        if self._reference_moves and not (folder / REFERENCE).is_file():
            raise ValueError(f"{folder} has no {REFERENCE}, and sync_ref_model is set: it was saved without. Unset it.")
        path = folder / STATE.format(self.args.process_index)
        state = json.loads(path.read_text()) if path.is_file() else {}  # more processes than there were, deliberately
        if anew:
            logger.warning(
                f"ignore_data_skip is set: the run goes on from {folder} with the rows from the start of an epoch"
                + (f", although {other.split('. ')[0]}." if other else ".")
            )
        if self._records is not None and state.get("records") is not None:
            self._records.resume(state["records"], with_open=not anew)
        return {"folder": folder, "state": state, "anew": anew}

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        if self._is_saved_whole and model is None:
            self._load_whole(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._is_saved_whole:
            self._load_whole(self.state.best_model_checkpoint)
        else:
            super()._load_best_model()

    @property
    def _is_saved_whole(self) -> bool:
        return isinstance(self.model, PreTrainedModel) and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def _load_whole(self, folder: str) -> None:
        """Load weights by the names under which they are saved, which are the family's first ones.

        transformers' trainer looks for the names that the modules have now, finds none of Qwen2.5-VL's, and goes on with
        the weights that the run began with.
        """
        kinds = {parameter.dtype for parameter in self.model.parameters()}
        saved = type(self.model).from_pretrained(folder, dtype=kinds.pop() if len(kinds) == 1 else torch.float32)
        self.model.load_state_dict(saved.state_dict())

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        self._train_sampler = super()._get_train_sampler(*args, **kwargs)
        return self._train_sampler

    def _run_epoch(self, **arguments: Any) -> None:
        if self._resumed is not None:
            resumed, self._resumed = self._resumed, None
            for _ in range(arguments["epochs_trained"]):
                self._skip_epoch()
            self._go_on(resumed)
        if self.state.global_step >= self.state.max_steps:  # transformers would make one step more
            self.control.should_training_stop = True
            return
        super()._run_epoch(**arguments)

    def _skip_epoch(self) -> None:
        """TRL's sampler draws each epoch's order from one generator, which a resumed run makes anew."""
        sampler = self._train_sampler
        if sampler is not None and sampler.shuffle:
            torch.randperm(sampler.num_samples, generator=sampler.generator)

    def _go_on(self, resumed: Mapping[str, Any]) -> None:
        """Put everything into its place, after transformers has put its own."""
        folder, state, device = resumed["folder"], resumed["state"], self.accelerator.device
        if self._reference_moves:
            load_model(self.accelerator.unwrap_model(self.ref_model), str(folder / REFERENCE), device=str(device))
        every = self.args.steps_per_generation * self.num_iterations
        if resumed["anew"]:
            self._step = -(-self.state.global_step * self.args.gradient_accumulation_steps // every) * every
            self._buffered_inputs = None
            return
        self._step, self._sampled_at_step = state["micro_steps"], state["sampled_at_step"]
        path = folder / ROLLOUT.format(self.args.process_index)
        tensors = load_file(path) if path.is_file() else {}
        self._buffered_inputs = unpack(state["rollout"], tensors, device)
        self._forwards.packs = state["packs"]
        self._metrics["train"].clear()
        self._metrics["train"].update(state["metrics"])
        self._tr_loss += state["loss"]
        self._total_loss_scalar -= state["loss"]  # the mean that ends a run is of the steps since it was resumed
        self._globalstep_last_logged = state["logged_at_step"]
        if self.log_completions and state["completions"] is not None:
            self._fill_logs(state["completions"])

    def _fill_logs(self, completions: Mapping[str, Any]) -> None:
        for name in ("prompt", "completion", "advantages"):
            self._logs[name].extend(completions[name])
        for name in ("rewards", "extra"):
            for column, values in completions[name].items():
                self._logs[name][column].extend(values)

    # Facts

    @property
    def _rollout_is_open(self) -> bool:
        """Whether updates are still to be made on the rollout in hand."""
        return self._step % (self.args.steps_per_generation * self.num_iterations) != 0

    @property
    def _reference_moves(self) -> bool:
        return self.args.sync_ref_model and self.ref_model is not None

    def _refuse_references_out_of_reach(self) -> None:
        in_parts = self.is_fsdp_enabled or is_deepspeed_zero3_enabled()
        if self._reference_moves and in_parts and self.args.save_strategy != "no":
            raise ValueError(
                "sync_ref_model moves the reference model, which is in parts under FSDP and ZeRO-3 and could not be kept in "
                "a checkpoint. Set sync_ref_model=False, save_strategy='no', or run with DDP or ZeRO-2."
            )


def _plain(values: Any) -> Any:
    """What a table shows, as JSON: a value of a reward's own that JSON does not know becomes its text."""
    return json.loads(json.dumps(values, default=lambda value: list(value) if _is_run(value) else str(value)))


def _is_run(value: Any) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str | bytes | torch.Tensor)
