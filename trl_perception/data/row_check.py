"""Checks every row once before training: its messages, media, settings and solution. Nothing is decoded."""

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, Features

from ..media.messages import ID_COLUMNS, MEDIA_COLUMNS, conversation, media_blocks
from ..media.paths import REMOTE, local_path
from ..media.settings import VideoSettings

MISSING = "media that do not exist"
SHOWN = 3  # rows of one kind of problem
KINDS = 20  # kinds of problems
BATCH = 1000
MOST = 100_000  # maximum number of stored problems

# Both raise ValueError: for a block with wrong settings, for a row whose solution cannot be scored.
Settings = Callable[[Mapping[str, Any]], Any]
Solutions = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class RowProblem:
    """A problem of one row.

    Args: number: of the row, from 0; row: its columns; kind: which part is wrong; detail: one sentence.
    """

    number: int
    row: Mapping[str, Any]
    kind: str
    detail: str


def find_problems(
    rows: Iterable[Mapping[str, Any]], *, settings: Settings | None = None, solutions: Solutions | None = None
) -> Iterator[RowProblem]:
    """Yield the problems of rows that cannot be trained on, in order; takes tens of microseconds per row.

    Checks the prompt and its media (see [`conversation`]), the settings of media blocks, whether local files exist, and
    the solution.

    Args:
        settings: reads the settings of a media block, those of `VideoSettings` by default.
        solutions: checks a row's solution; None if no reward reads it.
    """
    errors = _BlockErrors(settings or VideoSettings().override)
    is_file = _Folders().has
    for number, row in enumerate(rows):
        for kind, detail in _problems(row, errors, solutions, is_file):
            yield RowProblem(number, row, kind, detail)


def _problems(row, settings: Callable, solutions: Solutions | None, is_file: Callable) -> Iterator[tuple[str, str]]:
    try:
        blocks = list(media_blocks(conversation(row)))
    except ValueError as error:
        yield "prompt and media", str(error)
        blocks = []
    for block in blocks:
        if error := settings(block):
            yield "settings of a media block", error
        for path in _paths(block[block["type"]]):
            if not is_file(local_path(path)):
                yield MISSING, path
    if solutions is not None:
        try:
            solutions(row)
        except ValueError as error:
            yield "problem_type and solution", str(error)


def _paths(medium: Any) -> Iterator[str]:
    """Yield the local files that a medium refers to."""
    if isinstance(medium, Mapping):
        medium = medium.get("path") if medium.get("bytes") is None else None
    if isinstance(medium, str | os.PathLike):
        if not str(medium).startswith(REMOTE):
            yield str(medium)
    elif isinstance(medium, list | tuple):
        for part in medium:
            yield from _paths(part)


class _BlockErrors:
    """Returns the error in the settings of a media block, or ""; equal settings are checked once."""

    def __init__(self, read: Settings):
        self._read = read
        self._known: dict[str, str] = {}

    def __call__(self, block: Mapping[str, Any]) -> str:
        given = repr([(key, value) for key, value in block.items() if key != block["type"]])
        if given not in self._known:
            try:
                self._read(block)
                self._known[given] = ""
            except ValueError as error:
                self._known[given] = str(error)
        return self._known[given]


class _Folders:
    """Checks which files exist; a folder with many lookups is listed once: each lookup is slow on a network disk."""

    ASKED = 8

    def __init__(self):
        self._asked: Counter[str] = Counter()
        self._names: dict[str, set[str]] = {}

    def has(self, path: str) -> bool:
        folder, name = os.path.split(path)
        self._asked[folder] += 1
        if self._asked[folder] > self.ASKED and name in self._listed(folder):
            return True
        try:
            return os.path.isfile(path)
        except ValueError:  # a null byte in the path
            return False

    def _listed(self, folder: str) -> set[str]:
        if folder not in self._names:
            try:
                with os.scandir(folder or ".") as entries:
                    self._names[folder] = {entry.name for entry in entries if entry.is_file()}
            except (OSError, ValueError):
                self._names[folder] = set()
        return self._names[folder]


def stored_rows(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Yield rows as stored: no image or video is decoded, and encoded bytes are replaced by a placeholder."""
    mixed = Features({name: feature for name, feature in dataset.features.items() if "Json" in str(feature)})
    for table in dataset.with_format("arrow").iter(batch_size=BATCH):
        columns = {name: _without_bytes(table[name].combine_chunks()).to_pylist() for name in table.column_names}
        if mixed:
            columns |= mixed.decode_batch({name: columns[name] for name in mixed})
        for values in zip(*columns.values(), strict=True):
            yield dict(zip(columns, values, strict=True))


def _without_bytes(array: pa.Array) -> pa.Array:
    """Return the array with every binary value replaced by one byte."""
    kind = array.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.if_else(pc.is_valid(array), pa.scalar(b"."), pa.scalar(None, pa.binary()))
    if pa.types.is_struct(kind):
        parts = [_without_bytes(part) for part in array.flatten()]
        return pa.StructArray.from_arrays(parts, names=[field.name for field in kind], mask=array.is_null())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        ends = pc.cumulative_sum(pc.cast(lengths, pa.int64()))
        offsets = pa.concat_arrays([pa.array([0], pa.int64()), ends])
        return pa.LargeListArray.from_arrays(offsets, _without_bytes(array.flatten()), mask=array.is_null())
    return array


class Origins:
    """The origin of a dataset's rows: file and line if known, else the number from 1."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.files = list(dataset.info.download_checksums or ())

    def __call__(self, number: int, row: Mapping[str, Any]) -> str:
        """Return a location such as `/data/train.jsonl, line 3 (id 7)`."""
        indices = self.dataset._indices
        stored = number if indices is None else indices.column(0)[number].as_py()
        place = f"row {stored + 1}"
        if self._is_whole_file:
            place = f"{self.files[0]}, row {stored + 1}"
        elif stored < len(self._lines):
            file, line, text = self._lines[stored]
            if len(self._lines) == self.dataset._data.num_rows or _agree(json.loads(text), row):
                place = f"{file}, line {line}"
        name = next((f" ({key} {row[key]})" for key in ID_COLUMNS if row.get(key) is not None), "")
        return place + name

    @cached_property
    def _is_whole_file(self) -> bool:
        """Whether the dataset comes from one file without lines: parquet, or one JSON list."""
        if len(self.files) != 1 or self._lines:
            return False
        file = Path(self.files[0])
        rows = (
            pq.ParquetFile(file).metadata.num_rows if file.suffix == ".parquet" else len(json.loads(file.read_bytes()))
        )
        return rows == self.dataset._data.num_rows

    @cached_property
    def _lines(self) -> list[tuple[str, int, bytes]]:
        lines = []
        for file in self.files:
            with open(file, "rb") as content:
                if content.read(64).lstrip().startswith(b"[") or not file.endswith((".json", ".jsonl")):
                    return []
                content.seek(0)
                lines += [(file, number, line) for number, line in enumerate(content, 1) if line.strip()]
        return lines


def _agree(line: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a line belongs to a row, by its plain columns: rows may have been filtered or reordered."""
    plain = [key for key, value in line.items() if isinstance(value, str | int | float) and key not in MEDIA_COLUMNS]
    plain = [key for key in plain if key not in ("prompt", "prompt_template")]
    return bool(plain) and all(row.get(key) == line[key] for key in plain)


def problem_table(problems: Sequence[RowProblem], where: Callable[[int, Mapping[str, Any]], str]) -> str:
    """Format problems by kind and sentence, the most frequent first, each with its first rows."""
    groups: dict[tuple[str, str], list[RowProblem]] = defaultdict(list)
    for problem in problems:
        alike = "" if problem.kind == MISSING else re.sub(r"'[^']*'|\d+|\[.*\]", "", problem.detail)
        groups[problem.kind, alike].append(problem)
    ordered = sorted(groups.values(), key=len, reverse=True)
    lines = []
    for group in ordered[:KINDS]:
        rows = len({problem.number for problem in group})
        lines.append(f"  {group[0].kind}: {rows:,} row{'s' if rows > 1 else ''}")
        lines += [f"    {where(problem.number, problem.row)}: {problem.detail}" for problem in group[:SHOWN]]
        if len(group) > SHOWN:
            lines.append(f"    and {len(group) - SHOWN:,} more")
    if len(ordered) > KINDS:
        lines.append(f"  and {len(ordered) - KINDS:,} more kinds of problems")
    return "\n".join(lines)


def check_rows(
    dataset: Dataset,
    *,
    title: str = "training data",
    skip_missing: bool = False,
    settings: Settings | None = None,
    solutions: Solutions | None = None,
) -> str | None:
    """Check every row once (see [`find_problems`]), and report all problems in one table.

    Args:
        title: the name of the data.
        skip_missing: whether rows whose files are missing are left out in training (`on_bad_media="skip"`).
        settings, solutions: as in [`find_problems`].
    Returns: a table for a warning if rows with missing files are left out; None if there are no problems.
    Errors: ValueError with a table of all other problems, with file and line.
    """
    problems = list(islice(find_problems(stored_rows(dataset), settings=settings, solutions=solutions), MOST))
    missing = [problem for problem in problems if skip_missing and problem.kind == MISSING]
    wrong = [problem for problem in problems if not (skip_missing and problem.kind == MISSING)]
    where = Origins(dataset)
    if wrong:
        rows = len({problem.number for problem in wrong})
        many = " or more (the check stopped there)" if len(problems) == MOST else ""
        raise ValueError(
            f"{rows:,}{many} of {len(dataset):,} rows of the {title} cannot be used:\n{problem_table(wrong, where)}\n"
            "Correct or drop these rows. on_bad_media='skip' leaves out rows whose files are missing, and check_rows=False skips "
            "this check."
        )
    if missing:
        rows = len({problem.number for problem in missing})
        return (
            f"{rows:,} of {len(dataset):,} rows of the {title} will be left out (on_bad_media='skip'):\n"
            f"{problem_table(missing, where)}"
        )
    return None
