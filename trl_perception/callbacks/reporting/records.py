"""Keeps a few groups of a run with their signals, for the report (see [`trl_perception.reports.rollouts`])."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerState, TrainingArguments

from ...batch import Group
from ...media.frames import token_frames
from ...modeling import pooled_rows
from ...modeling.attention import decoder_of, self_attentions, window_of
from ...reports.record_builder import RecordBuilder, record_row, settings_of
from ...reports.rollouts import new_attempt, thin, write_groups

logger = get_logger(__name__)

MOST_STEPS = 64  # recorded steps that a process keeps; see also the bounds of a row in reports/record_builder.py
ATTENTION_LAYERS = 3  # last layers whose attention to frames is read for a record
NOTHING = {"last": -1, "open": False, "drafts": []}  # the state before the first record

Values = Tensor | Sequence[Tensor]


class RolloutRecords(TrainerCallback):
    """Records groups of a rollout, from the rollout to the last update on it.

    Every `report_every` steps, and at the last rollout, `report_groups` groups are recorded, over all processes: those whose
    completions differ in reward first, as only they teach, and of as many problem types as there are. Signals come in
    while the rollout is used; the next rollout, or the end of training, writes the table. Where `report_every` is not set,
    nothing is recorded.

    Entropy and attention to frames of the policy that sampled are read for every record, in one forward more a recorded
    group. Under FSDP and DeepSpeed, where a forward is every process's business, only what the method logs is recorded.

    Args:
        args: the settings of the run.
        accelerator: its processes. model: the policy. tokenizer: decodes completions.
        reward_weights: (K,), one for each reward.
        about: `method` and `reinforces`, for the report.
        read: (group, entropy=, attention=, layers=) -> an object with `entropies` and `attention`, a forward of the policy.
        reads_policy: whether `read` may be called for some groups of some processes alone.
        log_metrics: ([{name: number}]) -> None, logs the means over all processes, which call it together.
    """

    def __init__(
        self,
        args: TrainingArguments,
        accelerator: Accelerator,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        reward_weights: Tensor,
        *,
        about: Mapping[str, str],
        read: Callable,
        reads_policy: bool,
        log_metrics: Callable[[list[dict[str, float]]], None],
    ):
        self.args, self.accelerator, self.model, self.tokenizer = args, accelerator, model, tokenizer
        self.reward_weights, self.about, self.read, self.log_metrics = reward_weights, about, read, log_metrics
        self.every = args.report_every or 0
        each, more = divmod(args.report_groups, accelerator.num_processes)
        self.most_groups = each + (accelerator.process_index < more)
        self._reads = bool(self.every) and reads_policy
        self._layers = min(ATTENTION_LAYERS, _full_attention_layers(model)) if self._reads else 0
        self._last = -1  # steps taken before the latest recorded rollout
        self._builders: list[RecordBuilder] = []
        self._of_group: dict[Group, RecordBuilder] = {}
        self._is_open = self._records_now = False  # the rollout in hand; a training that records
        self._resumed = dict(NOTHING)
        self.folder = Path(args.output_dir)  # of the attempt, once training begins

    def on_train_begin(self, args, state, control, **kwargs):
        self._records_now = bool(self.every)
        resumed, self._resumed = self._resumed, dict(NOTHING)
        if not self._records_now:
            return
        self._last, self._is_open = resumed["last"], resumed["open"]
        self._builders = [RecordBuilder.from_state(draft) for draft in resumed["drafts"]]
        # A resumed record takes the place of what the run that died may have made of it.
        after = self._last if self._is_open else state.global_step
        made = [str(new_attempt(args.output_dir, after)) if state.is_world_process_zero else None]
        self.folder = Path(broadcast_object_list(made)[0])

    def on_train_end(self, args, state, control, **kwargs):
        self.close()
        self._records_now = False

    def state(self, rollout_is_open: bool) -> dict[str, Any]:
        """What a checkpoint keeps, as JSON.

        Args:
            rollout_is_open: whether updates, and with them signals, are still to come on the rollout in hand.
        """
        is_open = rollout_is_open and self._is_open
        drafts = [builder.state() for builder in self._builders] if is_open else []
        return {"last": self._last, "open": is_open, "drafts": drafts}

    def resume(self, state: Mapping[str, Any], *, with_open: bool) -> None:
        """Resume from a checkpoint's state when training begins, with or without the record that was open."""
        self._resumed = dict(state) if with_open else {**state, "open": False, "drafts": []}

    def open(self, groups: Sequence[tuple[slice, Group]], state: TrainerState) -> None:
        """Begin a rollout. Every process calls it, with its complete groups and the rows that they have in it.

        Logs `rewards_by_type/REWARD/TYPE`, the mean over the completions of one problem type.
        """
        self.close()
        if not self.every:
            return
        self.log_metrics([_rewards_by_type(group) for _, group in groups])
        if not self._records_now or not self._is_due(state):
            return
        self._last, self._is_open = state.global_step, True
        for rows, group in _chosen(groups, self.most_groups):
            builder = RecordBuilder(self._row(group), rows.start, group.completion_mask)
            self._builders.append(builder)
            self._of_group[group] = builder
            if self._reads and group.prompt.visual is not None:
                self._read(group)

    def log_signal(
        self, of: Group | Mapping[str, Any], name: str, values: Values | Callable[[], Values], axes: str = "GT"
    ) -> None:
        """See [`GRPOVideoTrainer.log_signal`]."""
        if isinstance(of, Group):
            builders = [self._of_group[of]] if of in self._of_group else []
            places = [(builder, index, index) for builder in builders for index in range(len(builder))]
        else:
            places = [
                (builder, row - builder.start, index)
                for builder in self._builders
                for index, row in enumerate(of["row"].tolist())
                if builder.start <= row < builder.start + len(builder)
            ]
        if not places:
            return
        values = values() if callable(values) else values
        for builder, completion, index in places:
            if axes == "F":
                builder.log_group_signal(name, values)
            else:
                builder.log_signal(completion, name, values[index], axes)

    def close(self) -> None:
        """Write the record of the rollout in hand, if there is one."""
        builders, self._builders, self._of_group, self._is_open = self._builders, [], {}, False
        if not builders:
            return
        about = {**self.about, "settings": settings_of(self.args, self.model)}
        process, step = self.accelerator.process_index, self._last + 1
        write_groups(self.folder, step, process, [builder.row for builder in builders], about)
        thin(self.folder, process, MOST_STEPS)

    def _row(self, group: Group) -> dict[str, Any]:
        lengths = group.attention_mask.sum(1).tolist()
        return record_row(
            group.prompt,
            step=self._last + 1,
            completions=[ids[:n] for ids, n in zip(group.completion_ids.tolist(), lengths, strict=True)],
            mask=group.completion_mask,
            rewards=group.rewards,
            reward_weights=self.reward_weights,
            advantages=group.advantages,
            tokenizer=self.tokenizer,
        )

    def _is_due(self, state: TrainerState) -> bool:
        """Whether a rollout at this state is recorded: the first one of every `report_every` steps, and the last."""
        done = state.global_step
        if done // self.every != self._last // self.every:
            return True
        args = self.args
        updates = args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps
        return done != self._last and done + updates >= state.max_steps

    def _read(self, group: Group) -> None:
        """Log entropies, and where completions look; a method may replace both by its own."""
        device, width = group.completion_ids.device, group.completion_ids.size(1)
        attention = None
        if self._layers and group.visual.visual_tokens:
            frames = token_frames(group.visual)
            frames = torch.cat([frames, frames.new_full((width,), -1)])

            def attention(layers, mask):
                return pooled_rows(layers, slice(-width - 1, -1), mask, frames)

        # Dropout is not to draw other numbers where a run is recorded.
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            read = self.read(group, entropy=True, attention=attention, layers=max(1, self._layers))
        self.log_signal(group, "entropy", read.entropies)
        if read.attention is not None:
            self.log_signal(group, "frame_attention", read.attention, "GTF")


def _full_attention_layers(model: nn.Module) -> int:
    try:
        attentions = self_attentions(decoder_of(model))
    except ValueError as error:
        logger.warning(f"Records are without attention to frames: {error}")
        return 0
    return sum(not window_of(module) for module in attentions.values())


def _chosen(groups: Sequence[tuple[slice, Group]], most: int) -> list[tuple[slice, Group]]:
    """At most so many groups: those with a spread of rewards first, problem types in turn."""
    left, chosen, taken = list(groups), [], Counter()
    while left and len(chosen) < most:
        best = min(left, key=lambda entry: (not entry[1].advantages.any(), taken[_type_of(entry[1])]))
        left.remove(best)
        chosen.append(best)
        taken[_type_of(best[1])] += 1
    return chosen


def _rewards_by_type(group: Group) -> dict[str, float]:
    kind = _type_of(group)
    means = {name: values.nanmean().item() for name, values in group.rewards.items() if not values.isnan().all()}
    return {f"rewards_by_type/{name}/{kind}": mean for name, mean in means.items() if kind}


def _type_of(group: Group) -> str:
    return str(group.prompt.row.get("problem_type") or "")
