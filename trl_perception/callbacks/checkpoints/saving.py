"""Checkpoints: complete or not there, and with everything that a run needs to go on as if it had never stopped."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints
from trl import GRPOTrainer

from ...assets.checkpoint import ADAPTER_FILE
from ...reports.run import reward_stayed_zero
from .disk import DiskFullError, disk_full_guard
from .folder import UNFINISHED, clear_unfinished, finish, to_resume
from .run_facts import require_own_folder
from .run_state import go_on, read_state, reference_moves, write_state

logger = get_logger(__name__)

ZERO_REWARD = (
    "The reward was 0 in every step that was logged, so that nothing was learned. Look at completions (log_completions: true): an "
    "answer in another format than the rewards read wants another prompt_template, one that is cut a larger max_completion_length."
)


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
        not fit this run: another trainer, an adapter or none, other processes, batches, seed or rows (`ignore_data_skip=True`
        resumes with other rows and batches nevertheless). ValueError for an output folder that holds another run, and for one in which an adapter would be
        taken for this run's weights; and where every row was left out.
        """
        run = Path(self.args.output_dir)
        self._refuse_references_out_of_reach()
        trains_adapter = isinstance(self.model, PeftModel)
        if not trains_adapter and (run / ADAPTER_FILE).is_file():
            raise ValueError(
                f"{run} holds the adapter of another run ({ADAPTER_FILE}), which a loader takes instead of the weights that this "
                "run would save there. Set output_dir to another folder, or take adapter_* out of this one."
            )
        wanted = {"true": True, "false": None}.get(str(resume_from_checkpoint).lower(), resume_from_checkpoint)
        require_own_folder(self, resuming=bool(wanted))
        if self.args.should_save:
            for said in clear_unfinished(run):
                logger.warning(said)
        self.accelerator.wait_for_everyone()
        self._resumed = None
        if wanted:
            folder, passed = to_resume(run, wanted)
            for said in passed:
                logger.warning(said)
            if trains_adapter != (folder / ADAPTER_FILE).is_file():
                kinds = ("whole weights", "an adapter")
                raise ValueError(
                    f"{folder} does not fit this run: it was saved with {kinds[not trains_adapter]}, and this run trains "
                    f"{kinds[trains_adapter]}. Set use_peft (peft_config) as it was."
                )
            self._resumed = read_state(self, folder)
            wanted = os.fspath(folder)
        trained = super().train(wanted, *args, **kwargs)
        self._require_rows_used(at_the_end=True)
        if reward_stayed_zero(self.state.log_history):
            logger.warning(ZERO_REWARD)
        return trained

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
            with disk_full_guard(draft, f"Step {self.state.global_step}: the checkpoint {final}", advice):
                super()._save_checkpoint(model, trial)
                self._name_the_best(draft, final)
                write_state(self, draft)
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

    # Reading

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

        transformers' trainer looks for the names that the modules have now, finds of Qwen2.5-VL's only the head, and goes on
        with the other weights as the run began with them.
        """
        kinds = {parameter.dtype for parameter in self.model.parameters()}
        saved = type(self.model).from_pretrained(folder, dtype=kinds.pop() if len(kinds) == 1 else torch.float32)
        self.model.load_state_dict(saved.state_dict())

    def get_train_dataloader(self) -> Any:
        loader = super().get_train_dataloader()
        if self.args.dataloader_persistent_workers:
            # Workers begin once in a run, and once more in a resumed one: their seed is not drawn from the run's numbers.
            loader.base_dataloader.generator = torch.Generator()
        return loader

    def get_eval_dataloader(self, *args: Any, **kwargs: Any) -> Any:
        """A new one for each evaluation: one that is kept goes on in its order, which a resumed run would begin anew."""
        kept, self.args.dataloader_persistent_workers = self.args.dataloader_persistent_workers, False
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_persistent_workers = kept

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        self._train_sampler = super()._get_train_sampler(*args, **kwargs)
        return self._train_sampler

    def _run_epoch(self, **arguments: Any) -> None:
        if self._resumed is not None:
            resumed, self._resumed = self._resumed, None
            for _ in range(arguments["epochs_trained"]):
                self._skip_epoch()
            go_on(self, resumed)
        if self.state.global_step >= self.state.max_steps:  # transformers would make one step more
            self.control.should_training_stop = True
            return
        super()._run_epoch(**arguments)

    def _skip_epoch(self) -> None:
        """TRL's sampler draws each epoch's order from one generator, which a resumed run makes anew."""
        sampler = self._train_sampler
        if sampler is not None and sampler.shuffle:
            torch.randperm(sampler.num_samples, generator=sampler.generator)

    def _refuse_references_out_of_reach(self) -> None:
        in_parts = self.is_fsdp_enabled or is_deepspeed_zero3_enabled()
        if reference_moves(self) and in_parts and self.args.save_strategy != "no":
            raise ValueError(
                "sync_ref_model moves the reference model, which is in parts under FSDP and ZeRO-3 and could not be kept in "
                "a checkpoint. Set sync_ref_model=False, save_strategy='no', or run with DDP or ZeRO-2."
            )
