"""The error that media reading raises."""

from collections.abc import Mapping, Sequence
from typing import Any

MAX_SHOWN = 200  # characters of a path or URL kept in a message


class MediaError(ValueError):
    """A medium that cannot be read. Callers catch this class and either skip the sample or stop.

    str(error) = "<source>: <reason>. <remedy>"

    Args: source: the medium, or its short description; reason: what was found and what is expected;
        remedy: what to change. All three survive pickling, so that worker processes can return the error.
    """

    def __init__(self, source: Any, reason: str, remedy: str):
        self.source = source if isinstance(source, str) and len(source) <= MAX_SHOWN else describe(source)
        self.reason = reason.rstrip(".")
        self.remedy = remedy.rstrip(".")
        super().__init__(f"{self.source}: {self.reason}. {self.remedy}.")

    def __reduce__(self):
        return type(self), (self.source, self.reason, self.remedy)


def describe(source: Any) -> str:
    """Short name for messages: path or URL, "bytes (1234 B)", "array (8, 64, 64, 3)", "3 frames", "4x40 image"."""
    if isinstance(source, Mapping):
        named = source.get("path") or source.get("bytes")
        return describe(named) if named is not None else f"mapping with keys {sorted(map(str, source))}"
    if isinstance(source, bytes | bytearray | memoryview):
        return f"bytes ({len(source)} B)"
    if hasattr(source, "shape"):
        return f"array {tuple(source.shape)}"
    if hasattr(source, "getbands"):  # of Pillow, which messages need not import
        return f"{source.height}x{source.width} image"
    if isinstance(source, Sequence) and not isinstance(source, str):
        return f"{len(source)} frames"
    text = str(source)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
