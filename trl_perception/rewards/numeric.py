"""Numbers: reading one from text, and how near it is."""

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
_MAX_DIGITS = 6  # to which numbers of many decimals are compared


@dataclass(frozen=True)
class Quantity:
    """A number beside its unit.

    Args: value: the number; unit: its name as `split_unit` gives it, None without one; decimals: digits behind the point
        as written, an exponent counted in ("1e-5" has 5).
    """

    value: float
    unit: str | None = None
    decimals: int = 0


def read_number(text: str) -> float | None:
    """The one finite number that the text is, such as "1,234.5", "-.5" or "1e6"; None for anything more or less.

    Digits are ASCII, at most 64 characters are read, and what overflows a float ("1e999") is no number.
    """
    text = text.strip()
    if len(text) > _MAX_LENGTH or not _NUMBER.fullmatch(text):
        return None
    number = float(text.replace(",", ""))
    return number if math.isfinite(number) else None


def plain_notation(text: str) -> str:
    r"""Numbers of the text in plain notation: "3 \times 10^{5}", "3×10⁵" -> "3e5"; "10\,000", "10 000" -> "10000"."""
    text = _GROUPED.sub(lambda match: re.sub(r"[^0-9]", "", match[0]), text)
    return _SCIENTIFIC.sub(lambda match: f"e{match[1] or match[2].translate(PLAIN_SCRIPTS)}", text)


def read_plain_quantity(text: str) -> Quantity | None:
    """The number that the text is, see `read_number`, as a quantity without a unit."""
    number = read_number(text)
    if number is None:
        return None
    mantissa, _, exponent = text.strip().lower().partition("e")
    return Quantity(number, decimals=max(0, len(mantissa.partition(".")[2]) - int(exponent or 0)))


def read_quantity(text: str) -> Quantity | None:
    """The same where a unit, a currency or a percent sign may stand beside the number: "75%", "$5", "3 m", "30°"."""
    if len(text) > 2 * _MAX_LENGTH:
        return None
    value, unit = split_unit(text)
    found = read_plain_quantity(plain_notation(_POWER_OF_TEN.sub(r"\g<1>1×", value)))
    return found and Quantity(found.value, unit, found.decimals)


def same_unit(found: str | None, wanted: str | None) -> bool:
    """Whether two units do not contradict each other: they are equal, or one is left out."""
    return found is None or wanted is None or found == wanted


def equal_quantities(found: Quantity, wanted: Quantity) -> float:
    """1.0 where both numbers are equal when rounded to 2 decimals, or to the more decimals that are wanted.

    Beyond six significant digits of the number wanted, decimals are not compared. Units that differ make 0.0.
    """
    decimals = wanted.decimals
    if wanted.value:
        decimals = min(decimals, _MAX_DIGITS - 1 - math.floor(math.log10(abs(wanted.value))))
    decimals = max(2, decimals)
    equal = found.value == wanted.value or round(found.value, decimals) == round(wanted.value, decimals)
    return float(equal and same_unit(found.unit, wanted.unit))


def relative_accuracy(found: float, wanted: float) -> float:
    """max(0, 1 - |found - wanted| / |wanted|); where 0 is wanted, 1 for 0 and 0 for all else.

    Source: arXiv:2503.21776 (Video-R1), regression reward. Differs: the release adds 1e-9 above and below the line, so
    that a right 0 scores 0 and any other right answer a little under 1.
    """
    if wanted == 0:
        return float(found == 0)
    return max(0.0, 1.0 - abs(found - wanted) / abs(wanted))


def near_quantities(found: Quantity, wanted: Quantity) -> float:
    """`relative_accuracy` of the numbers; 0.0 where their units differ."""
    return relative_accuracy(found.value, wanted.value) if same_unit(found.unit, wanted.unit) else 0.0
