"""The definition of an adapter: which file, which records, and how a record becomes a row."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .record import Record
from .source import Records, Source


@dataclass(frozen=True)
class Adapter:
    """A published data set.

    Args:
        title: the name under which it is published.
        layout: a short description of the input, for --help and the docs.
        files: returns the files of a split; the first holds the records. Errors: FileNotFoundError.
        read: reads the records of that first file.
        row: converts a record to a row, media as absolute paths or bytes. Errors: RecordError. Returns None for a
            record that this adapter cannot use by the data set's design; `left_out` is the reason.
        splits: published splits; empty if the split only names the output rows.
        left_out: the reason shown for records without a row.
        warm_up: whether rows have a `completion`.
        block_settings: whether the blocks of a prompt may have their own settings, such as `max_pixels`.
    """

    title: str
    layout: str
    files: Callable[[Source], list[Path]]
    read: Callable[[Path], Records]
    row: Callable[[Record, Source], dict[str, Any] | None]
    splits: tuple[str, ...] = ()
    left_out: str = ""
    warm_up: bool = False
    block_settings: bool = False
