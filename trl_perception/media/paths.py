"""Local paths of media, from their names alone."""

import os
from urllib.parse import unquote

REMOTE = ("http://", "https://", "data:")


def local_path(source: str | os.PathLike) -> str:
    """Return the path of a file:// URL or of a leading `~`; percent escapes are decoded unless such a file exists."""
    path = os.fspath(source)
    if not path.startswith("file://"):
        return os.path.expanduser(path)
    path = os.path.expanduser(path.removeprefix("file://"))
    return path if os.path.exists(path) else unquote(path)
