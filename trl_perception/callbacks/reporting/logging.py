"""What a run tells of itself: metrics, frames and weights for the trackers, records for the report, the model card."""

from collections.abc import Callable, Sequence
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from trl import GRPOTrainer

from ...batch import Group, Rollout
from ...objectives import TokenWeights
from .card import complete_card
from .card_facts import Origin
from .records import RolloutRecords
from .trackers import GROUPS_SHOWN, Credited, in_words, track


class Telling(GRPOTrainer):
    """TRL's trainer with a voice for groups, frames and token weights; [`GRPOVideoTrainer`] gives it something to say."""

    # What the method gives credit to, in a sentence for the report.
    reinforces = "Every token of a completion gets the same credit: its reward, compared with its group's."
    # Where the run comes from, for its card; a run from a recipe sets it.
    origin: Origin | None = None

    _records: RolloutRecords | None = None
    _shown: tuple[Credited, ...] = ()

    def log_signal(
        self, of: Group | dict[str, Any], name: str, values: Tensor | Sequence[Tensor] | Callable, axes: str = "GT"
    ) -> None:
        """Keep a signal for the report, where the rollout it belongs to is recorded (`report_every`); else do nothing.

        Args:
            of: the group, or in [`penalty`] the micro-batch (G then stands for its rows).
            name: the signal's name; "token_weights" is taken. A later note of a name replaces an earlier one.
            values: by `axes`, anything on padding, or a function that makes them, called only where they are kept: "GT",
                of tokens; "F", of frames (numbered as by `token_frames`); "GF", of frames for each completion; "GTF", of
                frames for each token. Boolean values are shown as a mask.
        """
        if self._records is not None and self.model.training:
            self._records.log_signal(of, name, values, axes)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.log_completions:
            # wandb refuses a column whose lists hold blocks of different kinds.
            prompts = self._logs["prompt"]
            for index, prompt in enumerate(list(prompts)):
                prompts[index] = in_words(prompt)
        super().log(logs, start_time)
        if self._shown and self.model.training:
            if self.is_world_process_zero():
                track(
                    self._shown,
                    self._tokenizer,
                    report_to=self.args.report_to,
                    callbacks=self.callback_handler.callbacks,
                    frames=self.log_multimodal,
                    step=self.state.global_step,
                )
            self._shown = ()

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """TRL's card, with what was done and what came of it; `README.md` in the output folder."""
        if dataset_name is None and self.origin is not None and self.origin.on_hub:
            dataset_name = self.origin.dataset
        super().create_model_card(model_name=model_name, dataset_name=dataset_name, tags=tags)
        if self.is_world_process_zero():
            complete_card(self)

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _record(self, metrics: list[dict[str, float | Tensor]]) -> None:
        """Log each metric's mean over all dictionaries of all processes since the last entry of the log.

        Every process calls it equally often. Each dictionary counts once, in whichever process and call it came.
        """
        local = [{key: float(value) for key, value in of_one.items()} for of_one in metrics]
        for of_one in gather_object(local):
            for key, value in of_one.items():
                self._metrics[self._mode][key].append(value)

    def _log_frames(self, rollout: Rollout) -> None:
        """Images, and the frames of videos, for the completions table of the trackers."""
        if self.log_completions and self.log_multimodal:
            pictures = [
                [*prompt.images, *(to_pil_image(frame) for frames in prompt.frames for frame in frames)]
                for prompt in rollout.prompts
            ]
            self._logs["images"].extend(gather_object(pictures))

    def _keep_records(self) -> None:
        self._records = RolloutRecords(self)
        self.add_callback(self._records)

    def _show(self, credited: Sequence[tuple[Group, TokenWeights | None]]) -> None:
        """The first groups with their weights, for the trackers' next entry."""
        if self.log_completions:
            room = GROUPS_SHOWN - len(self._shown)
            shown = (Credited(group, None if credit is None else credit.weights) for group, credit in credited[:room])
            self._shown = (*self._shown, *shown)
