"""The cells of a study: one run with its evaluations each, in a folder of its own.

OUTPUT/cells/METHOD/MODEL/seed-N/     or OUTPUT/cells/base/MODEL for a model before training
    cell.json                         the settings
    run/                              the output folder of the training
    cost.json                         what the run has used at each evaluation step
    evaluations/step-000025/          one for each evaluation step
    log.txt, progress                 the output of its processes; the share that is done
    complete.json                     written last, with the digest of the settings
"""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..evaluation.store import write_text
from .configuration import Method, StudyConfig

BASE = "base"
CELL, COST, COMPLETE, LOG, PROGRESS, LOCK = "cell.json", "cost.json", "complete.json", "log.txt", "progress", "lock"


@dataclass(frozen=True)
class Cell:
    """One run of a study; `method` is "base" and `seed` None for the evaluation of a model before training.

    Args:
        settings: model, seed, recipe, trainer, evaluation, evaluate_every and the package's version, as JSON.
    """

    method: str
    model: str
    seed: int | None
    folder: Path
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.method}, {self.model}" + ("" if self.seed is None else f", seed {self.seed}")

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def phases(self) -> tuple[str, ...]:
        """What its processes do, in this order."""
        return ("evaluate",) if self.seed is None else ("train", "evaluate")

    @property
    def steps(self) -> list[int]:
        """The optimisation steps after which it is evaluated."""
        if self.seed is None:
            return [0]
        last, every = self.settings["recipe"]["max_steps"], self.settings["evaluate_every"]
        return sorted({*range(every, last + 1, every), last})

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def is_complete(self) -> bool:
        file = self.folder / COMPLETE
        return file.is_file() and json.loads(file.read_text())["digest"] == self.digest

    @property
    def progress(self) -> float:
        """The share that is done, from 0 to 1."""
        if self.is_complete:
            return 1.0
        file = self.folder / PROGRESS
        return float(file.read_text()) if file.is_file() else 0.0

    def evaluation(self, step: int) -> Path:
        return self.folder / "evaluations" / f"step-{step:06d}"

    def require_own_folder(self) -> None:
        """Errors: ValueError if the folder holds a cell with other settings, naming them."""
        file = self.folder / CELL
        if not file.is_file():
            return
        there, now = (_flat(settings) for settings in (json.loads(file.read_text()), self.settings))
        keys = [key for key in {**there, **now} if there.get(key) != now.get(key)]
        if keys:
            found = "; ".join(f"{key}: {there.get(key)!r} there, {now.get(key)!r} now" for key in keys[:5])
            raise ValueError(
                f"{self.folder} holds a cell with other settings ({found}). Set output to another folder, or delete this one to "
                "run it again."
            )

    def claim(self) -> int | None:
        """Lock the folder and write the settings there; return the lock, or None if another process runs the cell.

        Processes of the cell inherit the lock, so that it holds until the last of them has ended.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        self.require_own_folder()
        write_text(self.folder / CELL, json.dumps(self.settings, indent=1) + "\n")
        (self.folder / PROGRESS).unlink(missing_ok=True)  # a killed process may have been beyond its last checkpoint
        return lock


def cells_of(config: StudyConfig) -> list[Cell]:
    """Return the cells of a study: the models before training, then all methods of the first seed, of the second, ..."""
    names = {model: re.sub(r"[^\w.-]+", "--", model).strip("-") or "model" for model in config.models}
    if len({*names.values()}) < len(names):
        raise ValueError(f"Two of the models {', '.join(names)} would have one folder. Name them by other paths.")

    def cell(method: Method, model: str, seed: int | None) -> Cell:
        settings = {"model": model, "seed": seed, "evaluation": method.evaluation, "version": __version__}
        trained = {"recipe": method.recipe, "trainer": method.trainer, "evaluate_every": config.evaluate_every}
        settings |= trained if seed is not None else dict.fromkeys(trained)
        place = (BASE, names[model]) if seed is None else (method.name, names[model], f"seed-{seed}")
        folder = config.output.absolute().joinpath("cells", *place)
        return Cell(place[0], model, seed, folder, json.loads(json.dumps(settings)))

    return [cell(config.methods[0], model, None) for model in config.models] + [
        cell(method, model, seed) for seed in config.seeds for model in config.models for method in config.methods
    ]


def part_of(cells: Sequence[Cell], part: str | None) -> list[Cell]:
    """Return the cells of a part, "2/8" for the second of eight; all for None. Errors: ValueError for another text."""
    if part is None:
        return list(cells)
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    number, count = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= count:
        raise ValueError(f"--cell is {part!r}; i/n with 1 <= i <= n is wanted, such as 1/{len(cells)}.")
    return list(cells[number - 1 :: count])


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with those of recipe and evaluation beside the others."""
    inner = {
        f"{part}.{key}": value for part in ("recipe", "evaluation") for key, value in (settings[part] or {}).items()
    }
    return inner | {key: value for key, value in settings.items() if key not in ("recipe", "evaluation")}
