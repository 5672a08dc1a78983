"""A disk that is full, told in one error instead of in the words of whichever library was writing."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Safetensors gives Rust's words with the number in brackets; torch's zip writer does not say why it stopped.
NO_ROOM_WORDS = (
    *(f"(os error {number})" for number in NO_ROOM),
    "inline_container",
    "PytorchStreamWriter",
    "iostream error",
)


class DiskFullError(OSError):
    """A write for which there was no room; its text says what was written, where, and what to do."""


@contextmanager
def disk_full_guard(folder: Path, what: str, advice: str) -> Iterator[None]:
    """Within it, a write into `folder` that finds no room ends in one `DiskFullError`.

    Args:
        what: what is being written, as the beginning of a sentence.
        advice: what to do, a sentence.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        if not _is_for_room(error):
            raise
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        raise DiskFullError(
            f"{what} could not be written: there was no room{_after(folder)}. The disk of {there} has "
            f"{_size(shutil.disk_usage(there).free)} free; a quota or a limit on the size of files (ulimit -f) may be lower. "
            f"{advice} ({reason})"
        ) from error


def _is_for_room(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in NO_ROOM
    return any(words in str(error) for words in NO_ROOM_WORDS)


def _after(folder: Path) -> str:
    """How far the writing came. The last file may be the one that found no room; safetensors takes its own away."""
    files = [(path.stat().st_mtime_ns, path) for path in folder.rglob("*") if path.is_file()]
    if not files:
        return ""
    written = sum(path.stat().st_size for _, path in files)
    return f" after {_size(written)}, {max(files)[1].name} last"


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
