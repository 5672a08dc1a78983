"""Describes the start of an unreadable file, for its error."""

from pathlib import Path

HEAD = 512  # bytes read
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def begins_like(medium: Path | bytes) -> str:
    """ "; it begins like ..." for zeros, a web page or text, "" for anything else. Nothing of the content is quoted."""
    head = _head(medium)
    if is_heic(medium):
        return "; it begins like HEIC"
    if head and not head.strip(b"\0"):
        return "; it begins with zero bytes"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "; it begins like a web page"
    text = bytes(range(32, 127)) + b"\t\n\r"
    return "; it begins like text" if head and not head.strip(text) else ""


def is_heic(medium: Path | bytes) -> bool:
    """Whether a file begins like HEIC, the pictures of phones."""
    head = _head(medium)
    return head[4:8] == b"ftyp" and head[8:12] in HEIC_BRANDS


def _head(medium: Path | bytes) -> bytes:
    if isinstance(medium, bytes):
        return medium[:HEAD]
    with medium.open("rb") as file:
        return file.read(HEAD)
