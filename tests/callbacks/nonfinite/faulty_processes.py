"""Run by test_nonfinite_processes.py in each of several processes: faults that occur in one process only.

    python -m torch.distributed.run --nproc_per_node 2 -m tests.callbacks.nonfinite.faulty_processes FOLDER

Every scenario must end on all processes; each writes its results to FOLDER/process-N.json.
"""

import json
import math
import sys
import time
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import TrainerCallback

from tests.helpers import history, letter_variety, message
from trl_perception import GRPOVideoConfig, GRPOVideoTrainer
from trl_perception.objectives import TokenWeights

RANK = PartialState(cpu=True).process_index
LAST = PartialState().num_processes - 1


class BadOnLast(GRPOVideoTrainer):
    """In the rollout of step 1, only the last process has an infinite token weight."""

    def token_weights(self, group):
        weights = group.completion_mask.float()
        if RANK == LAST and self.state.global_step == 1:
            weights[0, 0] = math.inf
        return TokenWeights(weights, {})


class SlowToDump(BadOnLast):
    """The last process fails, and takes longer than the others to write its dump."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._guard._dump, self.dump = self.dump_slowly, self._guard._dump

    def dump_slowly(self, *args, **options):
        time.sleep(2 * (RANK == LAST))
        return self.dump(*args, **options)


class FullOnLast(BadOnLast):
    """The last process fails, and its disk is too full for the dump."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._guard._dump, self.dump = self.dump_to_full_disk, self._guard._dump

    def dump_to_full_disk(self, *args, **options):
        if RANK != LAST:
            return self.dump(*args, **options)
        with patch("trl_perception.callbacks.nonfinite.loss_record.write_dump", side_effect=OSError("no room")):
            return self.dump(*args, **options)


class Sums(TrainerCallback):
    """The sum of all weights at the beginning of each step."""

    def __init__(self, model):
        self.model, self.seen = model, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.seen.append(sum(p.detach().double().sum().item() for p in self.model.parameters()))


def by_place(completions, **columns):
    """A different reward for each completion of a group, regardless of its text."""
    return [float(place) for place in range(len(completions))]


def raises(completions, **columns):
    if RANK == LAST:
        raise LookupError("no judge here")
    return letter_variety(completions)


async def raises_later(completions, **columns):
    return raises(completions)


def hangs(completions, **columns):
    if RANK == LAST:
        time.sleep(3600)
    return letter_variety(completions)


def nan(completions, **columns):
    values = letter_variety(completions)
    return [math.nan, *values[1:]] if RANK == LAST else values


SCENARIOS = {
    "loss, error": (SlowToDump, letter_variety, {}),
    "loss, error, full disk": (FullOnLast, letter_variety, {}),
    "loss, skip": (BadOnLast, by_place, {"on_nonfinite": "skip"}),
    "reward raises": (GRPOVideoTrainer, raises, {}),
    "async reward raises": (GRPOVideoTrainer, raises_later, {}),
    "reward hangs": (GRPOVideoTrainer, hangs, {"reward_timeout": 5.0}),
    "reward nan, error": (GRPOVideoTrainer, nan, {}),
    "reward nan, skip": (GRPOVideoTrainer, nan, {"on_nonfinite": "skip", "beta": 0.1}),
}


def outcome(name, cls, reward, settings, folder):
    rows = [{"prompt": message(f"Say {word}."), "id": word} for word in ("red", "blue", "green", "grey")]
    args = GRPOVideoConfig(
        str(Path(folder) / name.replace(", ", "-").replace(" ", "-")),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=4,
        max_steps=3,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        bf16=False,
        **settings,
    )
    trainer = cls(model="tiny", reward_funcs=reward, args=args, train_dataset=Dataset.from_list(rows))
    sums = Sums(trainer.model)
    trainer.add_callback(sums)
    error, dumped = None, []
    try:
        trainer.train()
    except (ValueError, RuntimeError, FloatingPointError) as caught:
        error = f"{type(caught).__name__}: {caught}"
        step = Path(args.output_dir) / "nonfinite" / "step-000001"
        dumped = [
            str(path.relative_to(step)) for path in step.rglob("*")
        ]  # immediately, as the launcher ends the others now
    return {
        "error": error,
        "step": trainer.state.global_step,
        "sums": sums.seen,
        "skipped": history(trainer, "nonfinite/skipped", "nonfinite/rewards"),
        "dumped": dumped,
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    seen = {name: outcome(name, *scenario, sys.argv[1]) for name, scenario in SCENARIOS.items()}
    (Path(sys.argv[1]) / f"process-{RANK}.json").write_text(json.dumps(seen))
