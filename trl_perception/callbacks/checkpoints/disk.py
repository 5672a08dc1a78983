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

    Args: what: what is being written, as the beginning of a sentence. advice: what to do, a sentence.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        number = getattr(error, "errno", None)
        if not (any(words in str(error) for words in NO_ROOM_WORDS) if number is None else number in NO_ROOM):
            raise
        reason = " ".join(str(error).split("\n")[0].split()) or type(error).__name__
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free / 2**20
        # The last file may be the one that found no room; safetensors deletes its own.
        files = [
            (path.stat().st_mtime_ns, path.stat().st_size, path.name) for path in folder.rglob("*") if path.is_file()
        ]
        written = sum(size for _, size, _ in files) / 2**20
        after = f" after {written:,.1f} MiB, {max(files)[2]} last" if files else ""
        raise DiskFullError(
            f"{what} could not be written: there was no room{after}. The disk of {there} has {free:,.1f} MiB free; a quota or a "
            f"limit on the size of files (ulimit -f) may be lower. {advice} ({reason})"
        ) from error
