"""A process of one cell: `python -m trl_perception.study.worker FOLDER [train] [evaluate]`, started by the study."""

import json
import shutil
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from transformers import TrainerCallback

from ..callbacks.checkpoints import last_complete
from ..cli.errors import one_line
from ..evaluation import EvaluationSettings, evaluate
from ..evaluation.store import write_text
from ..train import main as train
from ..trainers import GRPOVideoTrainer
from .cells import BASE, CELL, COMPLETE, COST, PROGRESS, Cell

TRAINING_SHARE = 0.9  # of a cell's time, for the progress bar alone


class CostLog(TrainerCallback):
    """Writes what a run has used at each evaluation step, and its progress after every step.

    `seconds` and `processor_seconds` from the start, without checkpoints and without what a killed run did beyond the
    checkpoint that it resumes from; processor time of all threads on a CPU, the time of the device on an accelerator.
    `rollouts`: completions that were sampled, with those under a view and those that dynamic sampling rejects. `tokens`: of
    their prompts and completions.
    """

    def __init__(self, trainer: GRPOVideoTrainer, cell: Cell):
        self.cell, self.due = cell, set(cell.steps)
        on_cpu = trainer.accelerator.device.type == "cpu"
        self.clocks = {
            "seconds": time.perf_counter,
            "processor_seconds": time.process_time if on_cpu else time.perf_counter,
        }
        self.used = {**dict.fromkeys(self.clocks, 0.0), "rollouts": 0}
        generate = trainer._generate_single_turn

        def counted(prompt_ids, *args, **kwargs):
            self.used["rollouts"] += len(prompt_ids)
            return generate(prompt_ids, *args, **kwargs)

        trainer._generate_single_turn = counted

    def on_train_begin(self, args, state, control, **kwargs):
        file = self.cell.folder / COST
        before = json.loads(file.read_text()) if file.is_file() else []
        self.points = [point for point in before if point["step"] <= state.global_step]
        if state.global_step:
            (resumed,) = (point for point in self.points if point["step"] == state.global_step)
            self.used = {key: resumed[key] for key in self.used}
        self._start()

    def on_step_end(self, args, state, control, **kwargs):
        for name, clock in self.clocks.items():
            self.used[name] += clock() - self.started[name]
        if state.global_step in self.due:  # before its checkpoint is written
            tokens = state.num_input_tokens_seen
            self.points.append({"step": state.global_step, **self.used, "tokens": tokens})
            write_text(self.cell.folder / COST, json.dumps(self.points) + "\n")
        write_progress(self.cell, TRAINING_SHARE * state.global_step / state.max_steps)
        self._start()

    def on_save(self, args, state, control, **kwargs):
        self._start()

    def _start(self):
        self.started = {name: clock() for name, clock in self.clocks.items()}


def train_cell(cell: Cell) -> None:
    """Train a cell's run, from its last checkpoint where there is one; nothing if it is trained."""
    if (cell.run / "trainer_state.json").is_file():  # written at the end
        return
    controlled = {"model_name_or_path": cell.model, "seed": cell.seed, "output_dir": str(cell.run)}
    controlled |= {"save_strategy": "steps", "save_steps": cell.settings["evaluate_every"]}
    if last_complete(cell.run) is not None:
        controlled["resume_from_checkpoint"] = True
    recipe = cell.folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**cell.settings["recipe"], **controlled}, sort_keys=False))
    train(
        ["--config", str(recipe)],
        trainer_class=_class_at(cell.settings["trainer"]),
        prepare=lambda trainer: trainer.add_callback(CostLog(trainer, cell)),
    )


def evaluate_cell(cell: Cell) -> None:
    """Evaluate a cell's checkpoints, mark it as complete, and delete them."""
    for number, step in enumerate(cell.steps):
        weights = cell.run if step == cell.steps[-1] else cell.run / f"checkpoint-{step}"
        model = cell.model if cell.method == BASE else str(weights)
        evaluate(EvaluationSettings(**cell.settings["evaluation"], model=model, output=str(cell.evaluation(step))))
        start = TRAINING_SHARE * (cell.method != BASE)
        write_progress(cell, start + (1 - start) * (number + 1) / len(cell.steps))
    write_text(cell.folder / COMPLETE, json.dumps({"digest": cell.digest}) + "\n")
    for checkpoint in cell.run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)


def _class_at(path: str | None) -> type[GRPOVideoTrainer] | None:
    """Import a class by its dotted path. Errors: ValueError if it is no trainer of this package."""
    if path is None:
        return None
    module, _, name = path.rpartition(".")
    found = getattr(import_module(module), name, None)
    if not (isinstance(found, type) and issubclass(found, GRPOVideoTrainer)):
        raise ValueError(f"trainer is {path!r}, which is {found!r}; a subclass of GRPOVideoTrainer is wanted.")
    return found


def write_progress(cell: Cell, share: float) -> None:
    write_text(cell.folder / PROGRESS, f"{share:.4f}")


def read_cell(folder: str) -> Cell:
    """Return the cell of a folder from its settings."""
    place = Path(folder)
    settings: dict[str, Any] = json.loads((place / CELL).read_text())
    seed = settings["seed"]
    method = BASE if seed is None else place.parent.parent.name
    return Cell(method, settings["model"], seed, place, settings)


@one_line("trl-perception study")
def main() -> None:
    folder, *phases = sys.argv[1:]
    for phase in phases:
        {"train": train_cell, "evaluate": evaluate_cell}[phase](read_cell(folder))


if __name__ == "__main__":
    main()
