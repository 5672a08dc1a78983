"""Keeps a few groups of a run with their signals, for the report (see [`trl_perception.reports.rollouts`])."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from torch import Tensor
from transformers import TrainerCallback

from ...batch import Group
from ...media.frames import token_frames
from ...modeling import pooled_rows
from ...modeling.attention import decoder_of, self_attentions, window_of
from ...reports.rollouts import new_attempt, thin, write_groups
from .record_rows import RecordBuilder, settings_of

if TYPE_CHECKING:
    from ...trainers.grpo_video_trainer import GRPOVideoTrainer

logger = get_logger(__name__)

MOST_STEPS = 64  # recorded steps that a process keeps; see also the bounds of a row in record_rows.py
ATTENTION_LAYERS = 3  # last layers whose attention to frames is read for a record

Values = Tensor | Sequence[Tensor]


class RolloutRecords(TrainerCallback):
    """The groups of the rollout in hand that are kept, from the rollout to the last update on it.

    Every `report_every` steps, and at the last rollout, `report_groups` groups are kept, over all processes: those whose
    completions differ in reward first, as only they teach, and of as many problem types as there are. Signals come in
    while the rollout is used; the next rollout, or the end of training, writes the table.

    Entropy and attention to frames of the policy that sampled are read for every record, in one forward more a recorded
    group. Under FSDP and DeepSpeed, where a forward is every process's business, only what the method notes is kept.
    """

    def __init__(self, trainer: "GRPOVideoTrainer"):
        self.trainer = trainer
        options, process = trainer.args, trainer.accelerator.process_index
        each, more = divmod(options.report_groups, trainer.accelerator.num_processes)
        self.most_groups = each + (process < more)
        self.folder: Path | None = None
        self._last: int | None = None
        self._drafts: list[RecordBuilder] = []
        self._resumed: dict[str, Any] | None = None
        self._reads = not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled)
        self._layers = min(ATTENTION_LAYERS, _full_attention_layers(trainer.model)) if self._reads else 0

    def on_train_begin(self, args, state, control, **kwargs):
        resumed, self._resumed = self._resumed or {"last": None, "open": False, "drafts": []}, None
        self._last = resumed["last"]
        self._drafts = [RecordBuilder.of_state(draft) for draft in resumed["drafts"]]
        # A record that goes on takes the place of what the run that died may have made of it.
        after = self._last if resumed["open"] else state.global_step
        made = [str(new_attempt(args.output_dir, after)) if state.is_world_process_zero else None]
        self.folder = Path(broadcast_object_list(made)[0])

    def on_train_end(self, args, state, control, **kwargs):
        self.close()

    def state(self, rollout_is_open: bool) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON.

        Args:
            rollout_is_open: whether updates, and with them notes, are still to come on the rollout in hand.
        """
        trainer = self.trainer
        goes_on = rollout_is_open and self._last is not None and self._last == trainer._sampled_at_step
        drafts = [draft.state(self._last + 1, trainer._tokenizer, trainer.reward_weights) for draft in self._drafts]
        return {"last": self._last, "open": goes_on, "drafts": drafts if goes_on else []}

    def resume(self, state: Mapping[str, Any], *, with_open: bool) -> None:
        """Go on from a checkpoint's state when training begins, with or without the record that was open."""
        self._resumed = dict(state) if with_open else {**state, "open": False, "drafts": []}

    def open(self, groups: Sequence[tuple[slice, Group]]) -> None:
        """A rollout begins. Every process calls it, with its complete groups and the rows that they have in it.

        Logs `rewards_by_type/REWARD/TYPE`, the mean over the completions of one problem type.
        """
        self.close()
        self.trainer._record([_rewards_by_type(group) for _, group in groups])
        done = self.trainer.state.global_step
        if self.folder is None or not self._is_due(done):
            return
        self._last = done
        for rows, group in _chosen(groups, self.most_groups):
            self._drafts.append(RecordBuilder(group, rows.start))
            if self._reads and group.prompt.visual is not None:
                self._read(group)

    def log_signal(
        self, of: Group | Mapping[str, Any], name: str, values: Values | Callable[[], Values], axes: str = "GT"
    ) -> None:
        """See [`GRPOVideoTrainer.log_signal`]."""
        if isinstance(of, Group):
            places = [(d, i, i) for d in self._drafts if d.group is of for i in range(len(d.lengths))]
        else:
            places = [
                (draft, row - draft.start, i)
                for i, row in enumerate(of["row"].tolist())
                for draft in self._drafts
                if draft.start <= row < draft.start + len(draft.lengths)
            ]
        if not places:
            return
        values = values() if callable(values) else values
        for draft, completion, i in places:
            if axes == "F":
                draft.note_frames(name, values)
            else:
                draft.log_signal(completion, name, values[i], axes)

    def close(self) -> None:
        """Write what was noted of the rollout in hand, if it is recorded."""
        drafts, self._drafts = self._drafts, []
        if not drafts:
            return
        trainer = self.trainer
        about = {
            "method": trainer._name,
            "reinforces": trainer.reinforces,
            "settings": settings_of(trainer.args, trainer.model),
        }
        process, step = trainer.accelerator.process_index, self._last + 1
        rows = [draft.row(step, trainer._tokenizer, trainer.reward_weights) for draft in drafts]
        write_groups(self.folder, step, process, rows, about)
        thin(self.folder, process, MOST_STEPS)

    def _is_due(self, done: int) -> bool:
        """Whether a rollout after `done` steps is recorded."""
        options = self.trainer.args
        if self._last is None or done // options.report_every != self._last // options.report_every:
            return True
        updates = options.steps_per_generation * options.num_iterations / options.gradient_accumulation_steps
        return done != self._last and done + updates >= self.trainer.state.max_steps

    def _read(self, group: Group) -> None:
        """Note entropies, and where completions look; a method may write over both with its own."""
        device, width = group.completion_ids.device, group.completion_ids.size(1)
        attention = None
        if self._layers and group.visual.visual_tokens:
            frames = token_frames(group.visual).to(device)
            frames = torch.cat([frames, frames.new_full((width,), -1)])

            def attention(layers, mask):
                return pooled_rows(layers, slice(-width - 1, -1), mask, frames)

        # Dropout is not to draw other numbers where a run is recorded.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            reading = self.trainer.read(group, entropy=True, attention=attention, layers=max(1, self._layers))
        self.log_signal(group, "entropy", reading.entropies)
        if reading.attention is not None:
            self.log_signal(group, "frame_attention", reading.attention, "GTF")


def _full_attention_layers(model: torch.nn.Module) -> int:
    try:
        attentions = self_attentions(decoder_of(model))
    except ValueError as error:
        logger.warning(f"Records are without attention to frames: {error}")
        return 0
    return sum(not window_of(module) for module in attentions.values())


def _chosen(groups: Sequence[tuple[slice, Group]], most: int) -> list[tuple[slice, Group]]:
    """At most so many groups: those with a spread of rewards first, problem types in turn."""
    left, chosen, seen = list(groups), [], Counter()
    while left and len(chosen) < most:
        best = min(left, key=lambda entry: (not entry[1].advantages.any(), seen[_type_of(entry[1])]))
        left.remove(best)
        chosen.append(best)
        seen[_type_of(best[1])] += 1
    return chosen


def _rewards_by_type(group: Group) -> dict[str, float]:
    kind = _type_of(group)
    means = {name: values.nanmean().item() for name, values in group.rewards.items() if not values.isnan().all()}
    return {f"rewards_by_type/{name}/{kind}": mean for name, mean in means.items() if kind}


def _type_of(group: Group) -> str:
    return str(group.prompt.row.get("problem_type") or "")
