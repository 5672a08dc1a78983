"""The results of a study as JSON, from its complete cells."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, median
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..evaluation.store import PREDICTIONS
from ..reports.charts import moving_average
from ..reports.rollouts import read_groups
from ..reports.run import STATE
from ..reports.signals import token_frames
from ..reports.summary import evidence_frames
from ..rewards.registry import split_names
from .cells import BASE, COST, Cell
from .configuration import StudyConfig
from .statistics import MethodFigures, compare_values

BUDGETS = ("step", "rollouts", "processor_seconds")
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class CellResults:
    """What a complete cell has: E evaluations, the first of the model before training, on R rows.

    Args:
        used: {"step", "rollouts", "processor_seconds", "seconds", "tokens": (E,)} up to each evaluation.
        correct: (E,R), NaN where no answer counts.
        rewards: (step, training reward).
        evidence: see [`evidence_in_credit`].
    """

    cell: Cell
    used: Mapping[str, np.ndarray]
    correct: np.ndarray
    rewards: Curve
    evidence: tuple[float, float, int] | None

    def correct_at(self, budget: str, amount: float) -> np.ndarray:
        """Return (R,) when `amount` of a budget was used, between two evaluations by linear interpolation.

        (1 - w) correct[e] + w correct[e + 1],   w = (amount - used[e]) / (used[e + 1] - used[e])
        """
        used = self.used[budget]
        after = int(np.clip(np.searchsorted(used, amount), 1, len(used) - 1))
        share = np.clip((amount - used[after - 1]) / (used[after] - used[after - 1]), 0, 1)
        return (1 - share) * self.correct[after - 1] + share * self.correct[after]


def collect(config: StudyConfig, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return everything that the table and the page show, of the cells that are complete.

    Each method's accuracy is compared at three equal budgets: optimisation steps, sampled completions, processor time. A
    budget is the smallest total of any cell of the model, so that no value is extrapolated.
    """
    complete = [cell for cell in cells if cell.is_complete]
    missing = [cell.name for cell in cells if not cell.is_complete]
    counts = {"complete": len(complete), "missing": missing}
    models = {}
    for model in config.models:
        of_model = [cell for cell in complete if cell.model == model]
        if any(cell.method == BASE for cell in of_model) and len(of_model) > 1:
            models[model] = _of_model(config, of_model)
    return {"settings": config.to_json(), "cells": counts, "models": models}


def evidence_in_credit(groups: Sequence[Mapping[str, Any]]) -> tuple[float, float, int] | None:
    """Share of the credit that tokens give to frames that show evidence, from the records of a run.

        sum_t |A| w_t a_t(evidence) / sum_t |A| w_t a_t(all frames)

    over the tokens t of all completions, with the advantage A of the completion, the weight w_t (1 for a method without
    weights), and the attention a_t of the token to a frame.

    Returns: (share, share of the frames that show evidence, groups), over groups whose evidence is a part of the clip;
        None without such groups, credit or attention.
    """
    on_evidence = on_all = 0.0
    chances = []
    for group in groups:
        marked = np.array(evidence_frames(group), dtype=bool)
        if not marked.any() or marked.all():
            continue
        chances.append(marked.mean())
        for completion in group["completions"]:
            weights = completion["token_weights"] or [float(trains) for trains in completion["mask"]]
            for token, attention in token_frames(completion, len(marked)).get("frame_attention", {}).items():
                credit = abs(completion["advantage"]) * weights[token]
                on_evidence += credit * float(np.sum(attention, where=marked))
                on_all += credit * float(np.sum(attention))
    return (on_evidence / on_all, float(np.mean(chances)), len(chances)) if on_all > 0 else None


def steps_to(rewards: Curve, target: float) -> float | None:
    """Return the first step at which the mean reward of the last twentieth of the steps is `target`; None if it never is."""
    return next((step for step, reward in moving_average(rewards) if reward >= target), None)


def read_cell_results(cell: Cell, base: np.ndarray, rows: Sequence[str]) -> CellResults:
    """Read a complete cell. Args: base: (R,) of the model before training; rows: the ids of its rows."""
    points = json.loads((cell.folder / COST).read_text())
    used = {key: np.array([0.0, *(float(point[key]) for point in points)]) for key in (*BUDGETS, "seconds", "tokens")}
    correct = np.stack([base, *(_correct(cell, step, rows) for step in cell.steps)])
    log = json.loads((cell.run / STATE).read_text())["log_history"]
    rewards = [(entry["step"], entry["reward"]) for entry in log if entry.get("reward") is not None]
    return CellResults(cell, used, correct, rewards, evidence_in_credit(read_groups(cell.run)[0]))


def _correct(cell: Cell, step: int, rows: Sequence[str]) -> np.ndarray:
    """Return the pass rates (R,) of an evaluation, NaN where none applies. Errors: ValueError for other rows than `rows`."""
    table = pq.read_table(cell.evaluation(step) / PREDICTIONS, columns=["id", "pass_rate"]).to_pydict()
    if table["id"] != list(rows):
        raise ValueError(
            f"{cell.evaluation(step)} has other rows than the evaluation before training. Delete {cell.folder} and run it again."
        )
    return np.array([np.nan if value is None else value for value in table["pass_rate"]], dtype=np.float64)


def _of_model(config: StudyConfig, cells: Sequence[Cell]) -> dict[str, Any]:
    (base_cell,) = (cell for cell in cells if cell.method == BASE)
    by = split_names(base_cell.settings["evaluation"].get("by", ["problem_type"]))
    table = pq.read_table(base_cell.evaluation(0) / PREDICTIONS)
    rows = table["id"].to_pylist()
    labels = {column: np.array([str(value) for value in table[column].to_pylist()]) for column in by}
    base = _correct(base_cell, 0, rows)
    found = [read_cell_results(cell, base, rows) for cell in cells if cell.method != BASE]
    budgets = {name: min(float(one.used[name][-1]) for one in found) for name in BUDGETS}
    names = [method.name for method in config.methods if any(one.cell.method == method.name for one in found)]
    of_method = {name: [one for one in found if one.cell.method == name] for name in names}
    baseline = config.baseline if config.baseline in names else ""
    at_equal = {
        budget: compare_values(
            {name: {one.cell.seed: one.correct_at(budget, amount) for one in of_method[name]} for name in names},
            baseline,
            labels if budget == "step" else {},
        )
        for budget, amount in budgets.items()
    }
    before = compare_values({BASE: {0: base}}, "", labels)[BASE]
    detectable = [figures.detectable for figures in at_equal["step"].values() if figures.detectable is not None]
    return {
        "rows": int((~np.isnan(base)).sum()),
        "before": _figures(before),
        "budgets": budgets,
        "processor_seconds": sum(float(one.used["processor_seconds"][-1]) for one in found),
        "detectable": max(detectable, default=None),
        "methods": {
            name: {
                "seeds": [one.cell.seed for one in runs],
                "accuracies": [float(np.nanmean(one.correct[-1])) for one in runs],
                "equal": {budget: _figures(at_equal[budget][name]) for budget in BUDGETS},
                "per_step": {
                    key: fmean(float(one.used[key][-1] / one.used["step"][-1]) for one in runs)
                    for key in ("seconds", "processor_seconds", "tokens", "rollouts")
                },
                "steps_to_reward": _steps_to_reward(runs, config.target_reward),
                "evidence": _evidence(runs),
                "curves": _curves(runs),
            }
            for name, runs in of_method.items()
        },
    }


def _figures(figures: MethodFigures) -> dict[str, Any]:
    found = asdict(figures)
    if not found["groups"]:
        del found["groups"]
    return found


def _steps_to_reward(runs: Sequence[CellResults], target: float | None) -> dict[str, Any] | None:
    """Return the median over seeds, None where half of them or more never reach it, and how many do."""
    if target is None:
        return None
    found = [steps_to(run.rewards, target) for run in runs]
    middle = median(float("inf") if step is None else step for step in found)
    reached = sum(step is not None for step in found)
    return {"median": None if middle == float("inf") else middle, "reached": reached, "seeds": len(runs)}


def _evidence(runs: Sequence[CellResults]) -> dict[str, float] | None:
    found = [run.evidence for run in runs if run.evidence is not None]
    if not found:
        return None
    share, chance, groups = (list(column) for column in zip(*found, strict=True))
    return {"share": fmean(share), "chance": fmean(chance), "groups": sum(groups)}


def _curves(runs: Sequence[CellResults]) -> dict[str, list[list[float]]]:
    """Return [step, mean, lowest, highest] over seeds, of the accuracy at evaluations and of the smoothed training reward."""
    accuracy = [list(zip(run.used["step"], np.nanmean(run.correct, axis=1), strict=True)) for run in runs]
    return {
        name: [
            [float(step), float(np.mean(values)), float(min(values)), float(max(values))]
            for step in sorted({step for curve in curves for step, _ in curve})
            for values in [[value for curve in curves for at, value in curve if at == step]]
        ]
        for name, curves in (("accuracy", accuracy), ("reward", [moving_average(run.rewards) for run in runs]))
    }
