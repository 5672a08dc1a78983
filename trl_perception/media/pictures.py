"""Opens picture files with Pillow and converts its errors to MediaError."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from .errors import MediaError
from .sniff import begins_like, is_heic

# Read by running Ghostscript; by the operating system; floats without a scale.
REFUSED_FORMATS = frozenset(["EPS", "WMF", "SPIDER"])

# Errors that Pillow's decoders raise for damaged files; readers of some formats raise plain errors of Python's parsers.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    SyntaxError,
    LookupError,
    TypeError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


@contextmanager
def readable(name: str, medium: Path | bytes = b"") -> Iterator[None]:
    """Context manager that converts Pillow's errors to MediaError. Args: medium: the file, to describe its content."""
    try:
        yield
    except UnidentifiedImageError as error:
        reason = f"it cannot be read as an image (no format that is known{begins_like(medium)})"
        known = "Check the file, or drop this sample"
        remedy = "Install trl_perception[heif], or convert it to JPEG" if is_heic(medium) and not has_heif() else known
        raise MediaError(name, reason, remedy) from error
    except DAMAGE as error:
        reason = f"it cannot be read as an image ({error}{begins_like(medium)})"
        raise MediaError(name, reason, "Check the file, or drop this sample") from error


@contextmanager
def opened_picture(medium: Path | bytes, name: str) -> Iterator[Image.Image]:
    """Context manager that opens a picture and reads its header only. Raises: MediaError."""
    with readable(name, medium):
        image = Image.open(BytesIO(medium) if isinstance(medium, bytes) else medium, formats=_formats())
    with image:
        yield image


def has_heif() -> bool:
    """Whether the HEIC reader, the extra `heif`, is installed."""
    return find_spec("pillow_heif") is not None


@cache
def _formats() -> tuple[str, ...]:
    Image.init()
    if has_heif():
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in Image.ID if name not in REFUSED_FORMATS)
