"""Reads a run folder for the report: the log of its steps and the recorded groups."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .rollouts import read_groups

Points = list[tuple[float, float]]

STATE = "trainer_state.json"


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        name: of its folder.
        log: the logged entries, in order; each with its `step`.
        groups: recorded groups by step, rows of [`trl_perception.reports.rollouts.SCHEMA`].
        about: `method`, `reinforces` and `settings` as recorded; empty without records.
    """

    name: str
    log: list[dict[str, Any]]
    groups: list[dict[str, Any]]
    about: dict[str, Any]

    @property
    def method(self) -> str:
        """The recorded name of the method; the run's name without records."""
        return self.about.get("method", self.name)

    @property
    def steps(self) -> int:
        return max((int(entry["step"]) for entry in self.log), default=0)

    @property
    def keys(self) -> list[str]:
        """All keys that were logged with a number, sorted."""
        return sorted({key for entry in self.log for key, value in entry.items() if _is_number(value)})

    def series(self, key: str) -> Points:
        """Return the (step, value) pairs of a key; non-finite values are left out."""
        return [(entry["step"], float(entry[key])) for entry in self.log if _is_number(entry.get(key))]


def read_run(folder: str | os.PathLike) -> Run:
    """Read a run's folder: `trainer_state.json` there or in its last checkpoint, and `rollouts/`.

    Errors: FileNotFoundError if there is neither.
    """
    folder = Path(folder)
    checkpoints = sorted(
        folder.glob("checkpoint-*/" + STATE), key=lambda path: int(re.sub(r"\D", "", path.parent.name))
    )
    states = [path for path in (folder / STATE, *reversed(checkpoints)) if path.is_file()]
    groups, about = read_groups(folder)
    if not states and not groups:
        raise FileNotFoundError(
            f"{folder} holds no {STATE}, neither itself nor in a checkpoint, and no rollouts. Give the output_dir of a run "
            "that has saved something."
        )
    log = json.loads(states[0].read_text())["log_history"] if states else []
    return Run(folder.resolve().name, [entry for entry in log if "step" in entry], groups, about)


def gain(points: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """Return means over the first and over the last tenth of the points (at least one each); None without points."""
    if not points:
        return None
    tenth, values = max(1, math.ceil(len(points) / 10)), [value for _, value in points]
    return sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth


def reward_stayed_zero(log_history: Sequence[Mapping[str, Any]]) -> bool:
    """Whether steps logged a reward, and it was 0 for every completion of each of them.

    Args: log_history: `trainer.state.log_history`.
    """
    logged = [
        (entry["reward"], entry.get("reward_std", 0.0)) for entry in log_history if entry.get("reward") is not None
    ]
    return bool(logged) and all(mean == 0 and spread == 0 for mean, spread in logged)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
