"""A checkpoint is written under a name that nobody resumes from, and gets its own when every process has written."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from safetensors.torch import save_model
from torch import nn
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from ...assets.checkpoint import ADAPTER_FILE
from .disk import DiskFullError, disk_full_guard
from .folder import UNFINISHED, clear_unfinished, finish, folder_to_resume, wanted_checkpoint
from .run_facts import FORMAT, RUN, mismatch_reason
from .run_state import REFERENCE, write_state

logger = get_logger(__name__)


class Checkpoints(TrainerCallback):
    """The output folder of a run and its checkpoints: each is complete or not there, at whatever moment the run dies.

    Args:
        reference: a reference model that moves (`sync_ref_model`), or None.
        trains_adapter: whether an adapter is trained, not whole weights.
        in_parts: whether each process holds a part of every model.
    Errors: ValueError for a reference model that moves and cannot be saved.
    """

    def __init__(
        self,
        args: TrainingArguments,
        accelerator: Accelerator,
        reference: nn.Module | None,
        *,
        trains_adapter: bool,
        in_parts: bool,
    ):
        if in_parts and reference is not None and args.save_strategy != "no":
            raise ValueError(
                "sync_ref_model moves the reference model, which is in parts under FSDP and ZeRO-3 and could not be kept in "
                "a checkpoint. Set sync_ref_model=False, save_strategy='no', or run with DDP or ZeRO-2."
            )
        self.args, self.accelerator, self.reference, self.trains_adapter = args, accelerator, reference, trains_adapter
        self.is_writing = False

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **kwargs: Any) -> None:
        """Workers that stay start once in a run, and once more in a resumed one: their seed must not use up random numbers."""
        if args.dataloader_persistent_workers:
            train_dataloader.base_dataloader.generator = torch.Generator()

    def claim(self, run: Mapping[str, Any], resume_from: str | bool | None, *, keeps_files: bool) -> None:
        """Refuse an output folder that belongs to another run than `run`; mark it as this one's where it keeps files there.

        Rows may differ in a run that resumes: they are compared with the checkpoint's. Errors: ValueError.
        """
        folder = Path(self.args.output_dir)
        if not self.trains_adapter and (folder / ADAPTER_FILE).is_file():
            raise ValueError(
                f"{folder} holds the adapter of another run ({ADAPTER_FILE}), which a loader takes instead of this run's "
                "weights. Set output_dir to another folder, or take adapter_* out of this one."
            )
        was = json.loads((folder / RUN).read_text()) if (folder / RUN).is_file() else {}
        for name, before in was.items():
            if before != run.get(name) and not (wanted_checkpoint(resume_from) and name == "rows"):
                values = f"its {name} is {before}, this run's {run.get(name)}"
                raise ValueError(
                    f"{folder} holds another run: {'it was trained on other rows' if name == 'rows' else values}. Set output_dir "
                    f"to another folder, or take {folder} away if that run is not wanted any more."
                )
        self.accelerator.wait_for_everyone()
        if self.args.should_save and keeps_files:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / RUN).write_text(json.dumps(run, indent=1))

    def to_resume(self, resume_from: str | bool | None, facts: Mapping[str, Any]) -> Path | None:
        """The checkpoint that `resume_from_checkpoint` stands for, or None; what was left unfinished is deleted.

        Errors: ValueError where there is none that is complete, and where it does not fit this run, whose `facts` are given.
        """
        run, wanted = Path(self.args.output_dir), wanted_checkpoint(resume_from)
        if self.args.should_save:
            clear_unfinished(run)
        self.accelerator.wait_for_everyone()
        if not wanted:
            return None
        folder, anyway = folder_to_resume(run, wanted), self.args.ignore_data_skip
        about = json.loads((folder / RUN).read_text())
        reason = self._unresumable_reason(folder, about)
        other = None if reason else mismatch_reason(about, facts)
        if reason or (other and not anyway):
            raise ValueError(f"{folder} does not fit this run: {reason or other}.")
        if anyway:
            although = f", although {other.split('. ')[0]}." if other else "."
            what = f"the run resumes from {folder} with the rows from the start of an epoch"
            logger.warning(f"ignore_data_skip is set: {what}{although}")
        return folder

    def _unresumable_reason(self, folder: Path, about: Mapping[str, Any]) -> str | None:
        """Returns the reason why no run like this one can resume from a checkpoint, with what to do, or None."""
        start = f"set model_name_or_path to {folder} to start a new run with its weights"
        if about.get("format") != FORMAT:
            return (
                f"it was written by another version of this package (format {about.get('format')}; {FORMAT} is wanted). Resume "
                f"with that version, or {start}"
            )
        if about["only_model"]:
            return f"it holds weights alone. Set save_only_model=False where runs are to be resumed, or {start}"
        if self.trains_adapter != (folder / ADAPTER_FILE).is_file():
            now, then = ("an adapter", "whole weights") if self.trains_adapter else ("whole weights", "an adapter")
            return f"it was saved with {then}, and this run trains {now}. Set use_peft (peft_config) as it was"
        if self.reference is not None and not (folder / REFERENCE).is_file():
            return f"it has no {REFERENCE}, and sync_ref_model is set. Set sync_ref_model=False, as it was"
        return None

    def run_folder(self, output_dir: str) -> str:
        """The folder in which transformers' trainer makes the folders of checkpoints."""
        return os.path.join(output_dir, UNFINISHED) if self.is_writing else output_dir

    @contextmanager
    def writing(self, run: str, state: TrainerState) -> Iterator[Path]:
        """Context manager that completes the checkpoint which is written in it, and then deletes older ones.

        Args: run: the output folder of the run or of a trial. Yields: where to write.
        Errors: `DiskFullError` where there was no room; what was written of the checkpoint is deleted.
        """
        final, limit = Path(run) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}", self.args.save_total_limit
        draft = final.parent / UNFINISHED / final.name
        if self.args.should_save:
            clear_unfinished(final.parent)
        self.accelerator.wait_for_everyone()
        advice = (
            f"Checkpoints that are complete stay as they were. Make room, lower save_total_limit (now {limit}), or set "
            "output_dir to another disk, then resume_from_checkpoint: true."
        )
        self.is_writing = True
        try:
            with disk_full_guard(draft, f"Step {state.global_step}: the checkpoint {final}", advice):
                yield draft
                if state.best_model_checkpoint == str(draft):
                    state.best_model_checkpoint = str(final)
                    if self.args.should_save:
                        state.save_to_json(str(draft / TRAINER_STATE_NAME))
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    finish(draft, final)
        except DiskFullError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        finally:
            self.is_writing = False
        if self.args.should_save:
            best = state.best_model_checkpoint
            rotate_checkpoints(output_dir=run, save_total_limit=limit, best_model_checkpoint=best, use_mtime=True)
        self.accelerator.wait_for_everyone()

    def write(self, draft: Path, state: Mapping[str, Any], facts: Mapping[str, Any], step: int) -> None:
        """Write this process's state (see [`write_state`]), and on the process that saves what belongs to the whole run."""
        write_state(draft, self.args.process_index, state)
        if not self.args.should_save:
            return
        if self.reference is not None:
            save_model(self.reference, str(draft / REFERENCE))
        kind = {"rollout_is_open": state["rollout"] is not None, "only_model": self.args.save_only_model}
        (draft / RUN).write_text(json.dumps({"format": FORMAT, "step": step, **kind, **facts}, indent=1))
