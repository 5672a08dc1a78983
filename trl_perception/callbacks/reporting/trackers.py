"""What trackers show of a rollout beside TRL's table: completions shaded by their tokens' weights, and their frames."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor
from torchvision.transforms.functional import to_pil_image
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations import TensorBoardCallback

from ...batch import Group
from ...media import PreparedPrompt
from ...objectives import TokenWeights
from ...reports.weights_page import WeightedGroup, in_words, prompt_text, weights_markdown, weights_page

GROUPS_SHOWN = 4  # of a logged rollout; TRL's completions table has them all


class RolloutTracker(TrainerCallback):
    """Hands groups of the latest rollout to the trackers at each log: HTML to wandb and trackio, text and pictures to
    TensorBoard. TRL gives wandb and trackio a table of completions and frames, TensorBoard neither.

    Args:
        logs: TRL's columns of the completions table, of which `prompt` and `images` are completed here.
        tokenizer: decodes completions.
        callbacks: the trainer's; that of TensorBoard holds its writer.
        enabled: whether completions are logged. frames: whether their images and frames are.
    """

    def __init__(
        self,
        logs: Mapping[str, Any],
        tokenizer: PreTrainedTokenizerBase,
        callbacks: Sequence[TrainerCallback],
        *,
        enabled: bool,
        frames: bool,
    ):
        self.logs, self.tokenizer, self.callbacks = logs, tokenizer, callbacks
        self.enabled, self.frames = enabled, enabled and frames
        self._shown: list[tuple[Group, TokenWeights | None]] = []

    def start_rollout(self) -> None:
        """Forget the rollout before."""
        self._shown = []

    def show(self, credited: Sequence[tuple[Group, TokenWeights | None]]) -> None:
        """Keep the first groups with their weights, None where the method gives none, for the next log."""
        if self.enabled:
            self._shown += credited[: GROUPS_SHOWN - len(self._shown)]

    def log_frames(self, prompts: Sequence[PreparedPrompt]) -> None:
        """Put images, and the frames of videos, into the completions table. Every process calls it."""
        if self.frames:
            pictures = [
                [*prompt.images, *(to_pil_image(frame) for frames in prompt.frames for frame in frames)]
                for prompt in prompts
            ]
            self.logs["images"].extend(gather_object(pictures))

    def on_log(self, args, state, control, model=None, **kwargs):
        if not self.enabled:
            return
        prompts = self.logs["prompt"]  # wandb refuses a column whose lists hold blocks of different kinds
        for index, prompt in enumerate(list(prompts)):
            prompts[index] = in_words(prompt)
        if self._shown and model.training:
            if state.is_world_process_zero:
                self._track(args.report_to, state.global_step)
            self._shown = []

    def _track(self, report_to: Sequence[str], step: int) -> None:
        groups = [
            weighted_group(group, None if credit is None else credit.weights, self.tokenizer)
            for group, credit in self._shown
        ]
        if any(group.weights for group in groups):
            page = weights_page(groups, step)
            for name in ("wandb", "trackio"):
                if name in report_to:
                    tracker = import_module(name)
                    tracker.log({"token_weights": tracker.Html(page)})
        boards = [callback for callback in self.callbacks if isinstance(callback, TensorBoardCallback)]
        for writer in (board.tb_writer for board in boards if board.tb_writer is not None):
            for number, (shown, (group, _)) in enumerate(zip(groups, self._shown, strict=True)):
                writer.add_text(f"completions/{number}", weights_markdown(shown), step)
                for video, pictures in enumerate(group.prompt.frames if self.frames else ()):
                    writer.add_images(f"frames/{number}.{video}", pictures, step)


def weighted_group(group: Group, weights: Tensor | None, tokenizer: PreTrainedTokenizerBase) -> WeightedGroup:
    """A group as a tracker shows it, with the weights (G,T) of its tokens, or None where a method gives none."""
    own = group.attention_mask.bool()
    return WeightedGroup(
        prompt_text(group.prompt.logged),
        {name: values.tolist() for name, values in {"advantage": group.advantages, **group.rewards}.items()},
        [
            [tokenizer.decode([token]) for token in ids[mask].tolist()]
            for ids, mask in zip(group.completion_ids, own, strict=True)
        ],
        () if weights is None else [of_one[mask].tolist() for of_one, mask in zip(weights, own, strict=True)],
    )
