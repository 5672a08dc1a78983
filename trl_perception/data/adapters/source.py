"""A data set on disk: its files by name, their records, and the location of its media."""

import csv
import io
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...media.paths import local_path
from .record import Record, RecordError

URLS = ("http://", "https://")


@dataclass(frozen=True)
class Source:
    """Where a data set was unpacked.

    Args:
        path: its folder, or the file to read instead of the published name.
        split: one of its splits; any name if nothing is published by split.
        media: root folder of media paths; None uses the data set's folder.
    """

    path: Path
    split: str = "train"
    media: Path | None = None

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent

    def file(self, *names: str) -> Path:
        """Return the first of these files that exists (a `*` must match one file), or the source if it is a file.

        Errors: FileNotFoundError naming the files expected and the files found.
        """
        if self.path.is_file():
            return self.path
        if not self.path.is_dir():
            raise FileNotFoundError(f"The source {self.path} does not exist. Give --source the data set's folder.")
        for name in names:
            found = sorted(self.path.glob(name))
            if len(found) > 1:
                raise FileNotFoundError(
                    f"{self.path} holds {len(found)} files {name}; one is wanted. Give --source the file to read."
                )
            if found:
                return found[0]
        there = ", ".join(sorted(entry.name for entry in self.path.iterdir())[:12]) or "nothing"
        raise FileNotFoundError(
            f"{self.path} holds none of {', '.join(names)} (found: {there}). Give --source the folder as published, or "
            "the file itself."
        )

    def medium(self, *names: str) -> str:
        """Return the absolute path of the first existing medium, or of the first if none exists. URLs are unchanged."""
        if names[0].startswith(URLS):
            return names[0]
        root = self.media or self.folder
        paths = [os.path.abspath(root / local_path(name)) for name in names]
        return paths[0] if len(paths) == 1 else next((path for path in paths if os.path.exists(path)), paths[0])


@dataclass(frozen=True)
class Records:
    """The records of a file in order: their number, and an iterator from any start."""

    count: int
    read: Callable[[int], Iterator[Record]]  # number of records to skip -> the rest


def _text(file: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark. Errors: RecordError naming the first invalid line."""
    content = file.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise RecordError(
            f"{file}, line {line} is not UTF-8 (byte 0x{content[error.start]:02x}). Save the file in UTF-8."
        ) from error


def read_json(file: Path) -> Records:
    """Read a JSON file that holds a list of objects. Errors: RecordError for other content."""
    try:
        values = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise RecordError(f"{file} is not JSON: {error}. Fetch the file again.") from error
    if not isinstance(values, list):
        raise RecordError(f"{file} holds a JSON {type(values).__name__}; a list of records is wanted.")
    return _listed(values, file)


def read_jsonl(file: Path) -> Records:
    """Read a file with one JSON object per line; blank lines are skipped. Errors: RecordError naming the line."""
    values = []
    for number, line in enumerate(_text(file).split("\n"), 1):
        if line.strip():
            try:
                values.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise RecordError(f"{file}, line {number} is not JSON: {error}. Correct or remove the line.") from error
    return _listed(values, file)


def read_csv(file: Path) -> Records:
    """Read a CSV file with a header. Errors: RecordError for a line with more or fewer cells than the header."""
    values = list(csv.DictReader(io.StringIO(_text(file), newline=""), restkey="", restval=None))
    for number, row in enumerate(values, 1):
        if "" in row or None in row.values():
            raise RecordError(f"{file}, record {number} has more or fewer cells than the header. Correct or remove it.")
    return _listed(values, file)


def read_parquet(file: Path) -> Records:
    """Read a parquet file in small batches. Errors: RecordError if it is not parquet."""
    try:
        count = pq.ParquetFile(file).metadata.num_rows
    except pa.ArrowInvalid as error:
        raise RecordError(f"{file} is not parquet: {error}. Fetch the file again.") from error

    def read(start: int) -> Iterator[Record]:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=64):
            if number + len(batch) > start:
                for offset, values in enumerate(batch.to_pylist()):
                    if number + offset >= start:
                        yield Record(values, number + offset + 1, file)
            number += len(batch)

    return Records(count, read)


def _listed(values: list[Any], file: Path) -> Records:
    def read(start: int) -> Iterator[Record]:
        for number, value in enumerate(values[start:], start + 1):
            if not isinstance(value, dict):
                raise RecordError(f"{file}, record {number} is a {type(value).__name__}; an object is wanted.")
            yield Record(value, number, file)

    return Records(len(values), read)
