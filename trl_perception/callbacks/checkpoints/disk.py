"""A disk that is full: one error, whichever library was writing."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Safetensors gives Rust's words with the number in brackets; torch's zip writer does not say why it stopped.
NO_ROOM_WORDS = [f"(os error {number})" for number in NO_ROOM]
NO_ROOM_WORDS += ["inline_container", "PytorchStreamWriter", "iostream error"]


class DiskFullError(OSError):
    """A write for which there was no room: what was written, where, and what to do."""


@contextmanager
def disk_full_guard(folder: Path, what: str, advice: str) -> Iterator[None]:
    """Context manager that turns a write into `folder` without room into one `DiskFullError`.

    Args:
        what: what is being written, as the beginning of a sentence.
        advice: what to do, a sentence.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if not (any(words in str(error) for words in NO_ROOM_WORDS) if number is None else number in NO_ROOM):
            raise
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        raise DiskFullError(
            f"{what} could not be written: there was no room{_after(folder)}. The disk of {there} has "
            f"{_size(shutil.disk_usage(there).free)} free; a quota or a limit on the size of files (ulimit -f) may be lower. "
            f"{advice} ({reason})"
        ) from error


def _after(folder: Path) -> str:
    """How much was written. The last file may be the one that found no room; safetensors deletes its own."""
    files = [(path.stat().st_mtime_ns, path) for path in folder.rglob("*") if path.is_file()]
    if not files:
        return ""
    written = sum(path.stat().st_size for _, path in files)
    return f" after {_size(written)}, {max(files)[1].name} last"


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
