"""Numbers: parsing a number from text, and its relative accuracy."""

import math
import re
from dataclasses import dataclass

from trl_perception.rewards.reading import PLAIN_SCRIPTS
from trl_perception.rewards.units import split_unit

_NUMBER = re.compile(r"[+-]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_POWER = r"10 ?(?:\^ ?\{? ?([+-]?[0-9]{1,3}) ?\}?|([⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]{1,3}))"
_SCIENTIFIC = re.compile(rf"(?<=[0-9.]) ?(?:\\times|\\cdot|[×·*xX]) ?{_POWER}(?![0-9])")
_POWER_OF_TEN = re.compile(rf"^([+-]?)(?={_POWER}$)")
_GROUPED = re.compile(r"(?<![0-9.,])[0-9]{1,3}(?:(?:[ '_~]|\\[ ,;!]|\{,\})[0-9]{3})+(?![0-9])")
_MAX_LENGTH = 64
_MAX_DIGITS = 6  # significant digits to which numbers of many decimals are compared


@dataclass(frozen=True)
class Quantity:
    """A number and its unit.

    Args: value: the number; unit: its name as `split_unit` returns it, None without one; decimals: digits after the
        point as written, including the exponent ("1e-5" has 5).
    """

    value: float
    unit: str | None = None
    decimals: int = 0


def read_number(text: str) -> float | None:
    """Parse a text that is one finite number, such as "1,234.5", "-.5" or "1e6"; None for any other text.

    Digits are ASCII, at most 64 characters are read, and text that overflows a float ("1e999") is not a number.
    """
    text = text.strip()
    if len(text) > _MAX_LENGTH or not _NUMBER.fullmatch(text):
        return None
    number = float(text.replace(",", ""))
    return number if math.isfinite(number) else None


def plain_notation(text: str) -> str:
    r"""Convert numbers to plain notation: "3 \times 10^{5}", "3×10⁵" -> "3e5"; "10\,000", "10 000" -> "10000"."""
    text = _GROUPED.sub(lambda match: re.sub(r"[^0-9]", "", match[0]), text)
    return _SCIENTIFIC.sub(lambda match: f"e{match[1] or match[2].translate(PLAIN_SCRIPTS)}", text)


def read_plain_quantity(text: str) -> Quantity | None:
    """Parse a text that is one number (see `read_number`) as a quantity without a unit."""
    number = read_number(text)
    if number is None:
        return None
    mantissa, _, exponent = text.strip().lower().partition("e")
    return Quantity(number, decimals=max(0, len(mantissa.partition(".")[2]) - int(exponent or 0)))


def read_quantity(text: str) -> Quantity | None:
    """Parse one number, optionally with a unit, a currency or a percent sign: "75%", "$5", "3 m", "30°"."""
    if len(text) > 2 * _MAX_LENGTH:
        return None
    value, unit = split_unit(text)
    found = read_plain_quantity(plain_notation(_POWER_OF_TEN.sub(r"\g<1>1×", value)))
    return found and Quantity(found.value, unit, found.decimals)


def same_unit(found: str | None, wanted: str | None) -> bool:
    """Whether two units are compatible: they are equal, or one is missing."""
    return found is None or wanted is None or found == wanted


def equal_quantities(found: Quantity, wanted: Quantity) -> float:
    """Return 1.0 if both numbers are equal when rounded to 2 decimals, or to those of `wanted` if it has more.

    Decimals beyond six significant digits of `wanted` are not compared. Different units give 0.0.
    """
    decimals = wanted.decimals
    if wanted.value:
        decimals = min(decimals, _MAX_DIGITS - 1 - math.floor(math.log10(abs(wanted.value))))
    decimals = max(2, decimals)
    equal = found.value == wanted.value or round(found.value, decimals) == round(wanted.value, decimals)
    return float(equal and same_unit(found.unit, wanted.unit))


def relative_accuracy(found: float, wanted: float) -> float:
    """max(0, 1 - |found - wanted| / |wanted|); if wanted is 0, 1 for 0 and 0 otherwise.

    Source: arXiv:2503.21776 (Video-R1), regression reward. Differs: the release adds 1e-9 to numerator and denominator,
    so that a right 0 scores 0 and any other right answer slightly less than 1.
    """
    if wanted == 0:
        return float(found == 0)
    return max(0.0, 1.0 - abs(found - wanted) / abs(wanted))


def near_quantities(found: Quantity, wanted: Quantity) -> float:
    """Return `relative_accuracy` of the numbers; 0.0 if their units differ."""
    return relative_accuracy(found.value, wanted.value) if same_unit(found.unit, wanted.unit) else 0.0
