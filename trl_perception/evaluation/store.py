"""Predictions on disk: a shard for every finished batch, one file at the end, and the settings that produced them."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SETTINGS, SHARDS, PREDICTIONS, SUMMARY = "settings.json", "shards", "predictions.parquet", "summary.json"


def schema(rewards: Sequence[str], by: Sequence[str]) -> pa.Schema:
    """Return the columns of the predictions; K samples per row.

    row: number in the data set; id; prompt: its text; media: paths and URLs; problem_type, solution and the columns of
    `by` as text; completions (K); scores: {reward: (K)}, null where a reward does not apply; pass_rate: share of right
    completions, null where `right_by` does not apply; tokens (K); cut (K): stopped by max_new_tokens; left_out: why the
    row was not completed, "" for one that counts.
    """
    text, texts = pa.string(), pa.list_(pa.string())
    scores = pa.struct([(name, pa.list_(pa.float64())) for name in rewards])
    columns = {"row": pa.int64(), "id": text, "prompt": text, "media": texts, "problem_type": text, "solution": text}
    columns |= {name: text for name in by if name not in columns}
    columns |= {"completions": texts, "scores": scores, "pass_rate": pa.float64()}
    columns |= {"tokens": pa.list_(pa.int64()), "cut": pa.list_(pa.bool_()), "left_out": text}
    return pa.schema(columns)


class PredictionStore:
    """The folder of one evaluation. Every file is written atomically, so that a run may stop at any time.

    Args:
        folder: `output` of the settings.
        batches: number of batches.
        columns: see `schema`.
    """

    def __init__(self, folder: str | Path, batches: int, columns: pa.Schema):
        self.folder, self.batches, self.columns = Path(folder), batches, columns

    def claim(self, made_with: Mapping[str, Any]) -> None:
        """Claim the folder for this evaluation, or resume in it; called by one process.

        Args: made_with: everything that predictions depend on, as JSON.
        Errors: ValueError for a folder that holds another evaluation, naming what differs, or anything else.
        """
        made_with = json.loads(json.dumps(made_with))
        file = self.folder / SETTINGS
        if file.is_file():
            found = json.loads(file.read_text())
            differing = [
                f"{key}: {found.get(key)!r} there, {made_with.get(key)!r} now"
                for key in {**found, **made_with}
                if found.get(key) != made_with.get(key)
            ]
            if differing:
                raise ValueError(
                    f"{self.folder} holds an evaluation with other settings ({'; '.join(differing)}). Set output to "
                    "another folder, or delete this one."
                )
        elif self.folder.exists() and any(self.folder.iterdir()):
            raise ValueError(f"{self.folder} holds something that is no evaluation. Set output to a new folder.")
        else:
            (self.folder / SHARDS).mkdir(parents=True, exist_ok=True)
            write_text(file, json.dumps(made_with, indent=2) + "\n")

    def pending(self) -> list[int]:
        """Return the numbers of batches that are not on disk."""
        if (self.folder / PREDICTIONS).is_file():
            return []
        return [number for number in range(self.batches) if not self._shard(number).is_file()]

    def write(self, number: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write one finished batch."""
        _write_table(self._shard(number), pa.Table.from_pylist(list(records), schema=self.columns))

    def merge(self) -> pa.Table:
        """Merge all predictions into one file in row order; called by one process when nothing is pending."""
        file = self.folder / PREDICTIONS
        if not file.is_file():
            shards = [pq.read_table(self._shard(number)) for number in range(self.batches)]
            _write_table(file, pa.concat_tables(shards).sort_by("row"))
        shutil.rmtree(self.folder / SHARDS, ignore_errors=True)
        return pq.read_table(file)

    def _shard(self, number: int) -> Path:
        return self.folder / SHARDS / f"{number:06d}.parquet"


def write_text(file: Path, text: str) -> None:
    draft = file.with_name(f".{file.name}")
    draft.write_text(text)
    os.replace(draft, file)


def _write_table(file: Path, table: pa.Table) -> None:
    draft = file.with_name(f".{file.name}")
    pq.write_table(table, draft)
    os.replace(draft, file)
