"""What a file that cannot be read looks like, for its error."""

from pathlib import Path

HEAD = 512  # bytes looked at


def begins_like(medium: Path | bytes) -> str:
    """ "; it begins like ..." for zeros, a web page or text, "" for anything else. Nothing of the content is quoted."""
    if isinstance(medium, bytes):
        head = medium[:HEAD]
    else:
        with medium.open("rb") as file:
            head = file.read(HEAD)
    if head and not head.strip(b"\0"):
        return "; it begins with zero bytes"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "; it begins like a web page"
    text = bytes(range(32, 127)) + b"\t\n\r"
    return "; it begins like text" if head and not head.strip(text) else ""


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD)
