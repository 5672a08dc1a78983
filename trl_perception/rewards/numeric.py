"""Numbers: reading one from text, and how near it is."""

import math
import re

_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_MAX_LENGTH = 64


def read_number(text: str) -> float | None:
    """The one finite number that the text is, such as "1,234.5", "-.5" or "1e6"; None for anything more or less.

    Digits are ASCII, at most 64 characters are read, and what overflows a float ("1e999") is no number.
    """
    text = text.strip()
    if len(text) > _MAX_LENGTH or not _NUMBER.fullmatch(text):
        return None
    number = float(text.replace(",", ""))
    return number if math.isfinite(number) else None


def read_rounded(text: str) -> float | None:
    """The same number rounded to 2 decimals."""
    number = read_number(text)
    return None if number is None else round(number, 2)


def relative_accuracy(found: float, wanted: float) -> float:
    """max(0, 1 - |found - wanted| / |wanted|); where 0 is wanted, 1 for 0 and 0 for all else.

    Source: arXiv:2503.21776 (Video-R1), regression reward. Differs: the release adds 1e-9 above and below the line, so
    that a right 0 scores 0 and any other right answer a little under 1.
    """
    if wanted == 0:
        return float(found == 0)
    return max(0.0, 1.0 - abs(found - wanted) / abs(wanted))
