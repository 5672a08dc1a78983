"""What an adapter is: which file, which records, and how one record becomes one row."""

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
        layout: what is read, in a few words, for --help and the docs.
        files: the files that are read for a split; the first holds the records. Errors: FileNotFoundError.
        read: the records of that first file.
        row: one record as a row of ours, media as absolute paths or bytes. Errors: RecordError. None for a record that
            is of no use to this adapter by the data set's own design; `left_out` says why.
        splits: splits that are published; empty where the split only names the rows that are written.
        left_out: the reason shown for records that give no row.
        warm_up: whether rows have a `completion`.
        block_settings: whether the blocks of a prompt may have settings of their own, such as `max_pixels`.
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
