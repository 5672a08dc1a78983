"""Computes figures from predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from .scoring import TEMPORAL_IOU
from .statistics import Estimate, estimate, pass_at_k

RIGHT_FROM = 0.5
IOU_THRESHOLDS = (0.3, 0.5)
ALL = "all"

Figures = dict[str, dict[str, dict[str, Estimate]]]


def pass_rate(scores: Sequence[float | None]) -> float | None:
    """Share of a row's completions that score 0.5 or more; None unless the reward applies to all of them."""
    if not scores or None in scores:
        return None
    return sum(score >= RIGHT_FROM for score in scores) / len(scores)


def row_values(predictions: pa.Table) -> dict[str, Tensor]:
    """Return the values of each figure for R rows: (R,) float64, NaN for a row without a value.

    accuracy: share of right completions, named avg@K for K > 1 completions a row; pass@k: k = 2, 4, ... and K;
    miou: temporal IoU, and iou@0.3, iou@0.5: share of completions that reach it, for rows that ask for time spans;
    reward/NAME: mean score; tokens: mean length; cut: share of completions stopped by max_new_tokens.
    Rows that were left out have none.
    """
    rows = predictions.to_pylist()
    counted = [row for row in rows if not row["left_out"]]
    samples = max((len(row["completions"]) for row in counted), default=1)
    values: dict[str, list[float | None]] = {
        "accuracy" if samples == 1 else f"avg@{samples}": [row["pass_rate"] for row in rows]
    }
    for k in _powers_of_two(samples):
        values[f"pass@{k}"] = [_pass_at(row["pass_rate"], samples, k) for row in rows]
    names = list(rows[0]["scores"]) if rows else []
    if TEMPORAL_IOU in names:
        values["miou"] = [_mean(_scores(row, TEMPORAL_IOU)) for row in rows]
        for threshold in IOU_THRESHOLDS:
            values[f"iou@{threshold}"] = [
                _mean([value >= threshold for value in _scores(row, TEMPORAL_IOU)]) for row in rows
            ]
    for name in names:
        if name != TEMPORAL_IOU:
            values[f"reward/{name}"] = [_mean(_scores(row, name)) for row in rows]
    for name in ("tokens", "cut"):
        values[name] = [_mean(row[name]) for row in rows]
    return {
        name: torch.tensor([float("nan") if value is None else float(value) for value in column], dtype=torch.float64)
        for name, column in values.items()
    }


def figures(
    predictions: pa.Table, values: Mapping[str, Tensor], by: Sequence[str], *, resamples: int, seed: int
) -> Figures:
    """Means with intervals: {"all": {"all": ...}, column: {value: {figure: Estimate}}}; omits figures without rows."""

    def of(chosen: Tensor) -> dict[str, Estimate]:
        found = {name: estimate(column[chosen], resamples=resamples, seed=seed) for name, column in values.items()}
        return {name: figure for name, figure in found.items() if figure is not None}

    table = {ALL: {ALL: of(torch.ones(len(predictions), dtype=torch.bool))}}
    for column in by:
        labels = predictions[column].to_pylist()
        table[column] = {
            label: of(torch.tensor([value == label for value in labels])) for label in sorted(set(labels), key=str)
        }
    return table


def as_json(table: Figures) -> dict[str, Any]:
    """Convert figures to plain numbers."""
    return {
        column: {
            str(label): {name: asdict(figure) for name, figure in of_label.items()}
            for label, of_label in groups.items()
        }
        for column, groups in table.items()
    }


def _pass_at(rate: float | None, samples: int, k: int) -> float | None:
    return None if rate is None else pass_at_k(samples, round(rate * samples), k)


def _powers_of_two(samples: int) -> list[int]:
    """Return 2, 4, ... below the number of samples, then that number; empty for one sample."""
    if samples == 1:
        return []
    return [*(1 << power for power in range(1, samples.bit_length()) if 1 << power < samples), samples]


def _scores(row: Mapping[str, Any], name: str) -> list[float]:
    return [value for value in row["scores"][name] or () if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
