"""Filters rows by type, id, a model's pass rate, and duration."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from .options import PrepareOptions


class RowFilter:
    """Returns the reason why a row is dropped, `""` for a row that is kept.

    Args: seen: ids of rows kept so far.
    """

    def __init__(self, options: PrepareOptions, seen: Iterable[str] = ()):
        self.options = options
        self.rates = read_pass_rates(options.pass_rates, *options.pass_rate_columns) if options.pass_rates else None
        self._seen = set(seen)

    def reason(self, row: dict[str, Any]) -> str:
        """Return the reason from the row's own values. Adds `pass_rate` to a row that is kept."""
        options = self.options
        if options.problem_types is not None and row["problem_type"] not in options.problem_types:
            return "other problem type"
        if self.rates is not None:
            rate = self.rates.get(row["id"])
            if rate is None:
                return "no pass rate"
            if rate < options.min_pass_rate:
                return "pass rate too low"
            if rate > options.max_pass_rate:
                return "pass rate too high"
            row["pass_rate"] = rate
        return ""

    def is_new(self, row: dict[str, Any]) -> bool:
        """Whether no earlier row had this id; records the id."""
        new = row["id"] not in self._seen
        self._seen.add(row["id"])
        return new

    def reason_of_duration(self, row: dict[str, Any]) -> str:
        """Return the reason from the video duration. Errors: ValueError if it is unknown and a bound is set."""
        low, high, seconds = self.options.min_duration, self.options.max_duration, row.get("duration")
        if (low is None and high is None) or not row["videos"]:
            return ""
        if seconds is None:
            raise ValueError(
                f"row {row['id']}: the length of its video is not known, and min_duration or max_duration asks for it. "
                f"Set check to 'exists' or 'decode' (found {self.options.check!r}); the length of a URL's video is known to 'decode' only."
            )
        if low is not None and seconds < low:
            return "video too short"
        return "video too long" if high is not None and seconds > high else ""


def read_pass_rates(file: Path, id_column: str, rate_column: str) -> dict[str, float]:
    """Read id -> pass rate from a parquet or JSONL file; ids become text, rows without a rate are left out.

    Errors: ValueError naming the file and a missing column, a rate outside [0, 1], or an id with two rates.
    """
    if file.suffix == ".parquet":
        columns = pq.ParquetFile(file).schema_arrow.names
        _require(file, columns, id_column, rate_column)
        rows = pq.read_table(file, columns=[id_column, rate_column]).to_pylist()
    elif file.suffix == ".jsonl":
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        for row in rows:
            _require(file, row, id_column, rate_column)
    else:
        raise ValueError(f"{file} is a {file.suffix or 'nameless'} file; pass rates come as .parquet or .jsonl.")
    rates: dict[str, float] = {}
    for row in rows:
        name, rate = str(row[id_column]), row[rate_column]
        if rate is None:
            continue
        if not isinstance(rate, int | float) or not (math.isfinite(rate) and 0 <= rate <= 1):
            raise ValueError(f"{file}: {rate_column} of {name} is {rate!r}; a share in [0, 1] is wanted.")
        if rates.setdefault(name, float(rate)) != rate:
            raise ValueError(f"{file}: {name} has the rates {rates[name]} and {rate}; one a row is wanted.")
    return rates


def _require(file: Path, columns: Iterable[str], *wanted: str) -> None:
    for name in wanted:
        if name not in columns:
            raise ValueError(
                f"{file} has columns {', '.join(columns)} and no {name!r}. Set pass_rate_columns to its id and rate."
            )
