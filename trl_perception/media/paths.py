"""Where a medium lies, by its name alone."""

import os
from urllib.parse import unquote

REMOTE = ("http://", "https://", "data:")


def local_path(source: str | os.PathLike) -> str:
    """The path behind a file:// URL or a leading `~`; percent escapes are read where no file has the literal name."""
    path = os.fspath(source)
    if not path.startswith("file://"):
        return os.path.expanduser(path)
    path = os.path.expanduser(path.removeprefix("file://"))
    return path if os.path.exists(path) else unquote(path)
