"""Compares two evaluations of the same rows: the paired difference and its interval."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from .figures import ALL, row_values
from .statistics import Estimate, estimate
from .store import PREDICTIONS, SETTINGS

COMPARED = ("prompt", "problem_type", "solution", "left_out")
SHOWN = 3


@dataclass(frozen=True)
class Comparison:
    """One figure in two evaluations, over the rows with a value in both.

    Args: first, second: means; difference: of second - first, row by row; higher, lower: rows where second is higher or
        lower than first.
    """

    first: float
    second: float
    difference: Estimate
    higher: int
    lower: int


def compare(
    first: str | Path, second: str | Path, *, resamples: int = 2000, seed: int = 0
) -> dict[str, dict[str, dict[str, Comparison]]]:
    """Compare two finished evaluations: {"all": {"all": ...}, column: {value: {figure: Comparison}}}.

    Rows are matched by id. The interval resamples the differences of rows: the difficulty of a row for both
    models cancels out, so the interval is narrower than the two separate intervals suggest.

    Errors: FileNotFoundError for a folder without finished predictions; ValueError if the rows are not the same or the
        completions of a row differ in number.
    """
    first_table, second_table = _read(first), _read(second)
    _refuse_different_rows(first_table, second_table, str(first), str(second))
    ours, theirs = row_values(first_table), row_values(second_table)
    columns = [name for name in _by(first) if name in _by(second)]
    table = {ALL: {ALL: _group(ours, theirs, torch.ones(len(first_table), dtype=torch.bool), resamples, seed)}}
    for column in columns:
        labels = first_table[column].to_pylist()
        table[column] = {
            str(label): _group(ours, theirs, torch.tensor([value == label for value in labels]), resamples, seed)
            for label in sorted(set(labels), key=str)
        }
    return table


def different_settings(first: str | Path, second: str | Path) -> dict[str, tuple[Any, Any]]:
    """Return {setting: (first, second)} for the settings, other than the model, in which two evaluations differ."""
    one, other = (json.loads((Path(folder) / SETTINGS).read_text()) for folder in (first, second))
    keys = [key for key in {**one, **other} if key not in ("model", "adapter", "revision", "weights")]
    return {key: (one.get(key), other.get(key)) for key in keys if one.get(key) != other.get(key)}


def comparison_json(table: Mapping[str, Mapping[str, Mapping[str, Comparison]]]) -> dict[str, Any]:
    """Convert a comparison to plain numbers."""
    return {
        column: {label: {name: asdict(found) for name, found in figures.items()} for label, figures in groups.items()}
        for column, groups in table.items()
    }


def _group(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], chosen: Tensor, resamples: int, seed: int
) -> dict[str, Comparison]:
    found = {}
    for name in (name for name in first if name in second):
        one, other = first[name][chosen], second[name][chosen]
        change = other - one  # NaN if either has none
        if (difference := estimate(change, resamples=resamples, seed=seed)) is not None:
            both = ~change.isnan()
            means = one[both].mean().item(), other[both].mean().item()
            found[name] = Comparison(*means, difference, int((change > 0).sum()), int((change < 0).sum()))
    return found


def _read(folder: str | Path) -> pa.Table:
    """Read predictions in the order of their ids."""
    file = Path(folder) / PREDICTIONS
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no finished evaluation: there is no {PREDICTIONS}. Run the evaluation to its end first."
        )
    return pq.read_table(file).sort_by("id")


def _by(folder: str | Path) -> list[str]:
    return json.loads((Path(folder) / SETTINGS).read_text())["by"]


def _refuse_different_rows(first: pa.Table, second: pa.Table, one: str, other: str) -> None:
    ids, other_ids = first["id"].to_pylist(), second["id"].to_pylist()
    for have, lack, has, lacks in ((ids, other_ids, one, other), (other_ids, ids, other, one)):
        if extra := sorted(set(have) - set(lack)):
            raise ValueError(
                f"{len(extra)} of the {len(have)} rows of {has} are not in {lacks} (ids {_some(extra)}). Evaluate both "
                "models on the same data, split and limit."
            )
    for column in COMPARED:
        differs = pc.not_equal(first[column].fill_null(""), second[column].fill_null(""))
        if pc.any(differs).as_py():
            places = pc.indices_nonzero(differs).to_pylist()
            place = places[0]
            raise ValueError(
                f"{len(places)} of {len(ids)} rows differ in {column} between {one} and {other}: row {ids[place]} has "
                f"{str(first[column][place])[:80]!r} and {str(second[column][place])[:80]!r}. Evaluate both models on the same data with the "
                "same media settings."
            )
    counts = [{len(row) for row in table["completions"].to_pylist() if row} for table in (first, second)]
    if counts[0] != counts[1]:
        raise ValueError(
            f"{one} has {_some(counts[0])} completions a row, {other} has {_some(counts[1])}. Evaluate both models with "
            "the same samples."
        )


def _some(values: Any) -> str:
    values = sorted(values)
    return ", ".join(map(str, values[:SHOWN])) + (", ..." if len(values) > SHOWN else "")
