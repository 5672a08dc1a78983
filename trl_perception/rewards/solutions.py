"""Converts the values of a `solution` column for comparison with an answer."""

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

import numpy as np

from trl_perception.rewards.text import ANSWER_OPEN, extract_answer

_MAX_PLACES = 20  # of a number written without an exponent


def plain_value(value: Any) -> Any:
    """Convert a value to text, or to lists and mappings of text, with numbers in decimal notation.

    3.0 becomes "3", 1e-05 "0.00001", True "True"; scalars and arrays of NumPy and PyTorch are converted by value.

    Raises: ValueError, naming the value found, for None, NaN, infinity and any other type.
    """
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, np.ndarray):
        return [plain_value(item) for item in value] if value.ndim else plain_value(value[()])
    if hasattr(value, "detach"):  # a tensor; avoids the import of PyTorch
        return [plain_value(item) for item in value] if value.ndim else plain_value(_number(value))
    if isinstance(value, Integral | Fraction):
        return str(value)
    if isinstance(value, Real | Decimal):
        number = Decimal(str(value))  # the shortest decimal that is this float, in its own precision
        if number.is_finite():
            return _written(number)
    raise ValueError(f"{value!r}")


def without_tags(text: str) -> str:
    """Remove answer tags from a text; empty if the tags do not hold a single answer."""
    return (extract_answer(text) or "") if ANSWER_OPEN in text else text


def _number(scalar: Any) -> Any:
    """Return a tensor's number; for a float, the shortest decimal that rounds to it in the tensor's dtype."""
    number = scalar.item()
    decimals = (Decimal(f"{number:.{digits}g}") for digits in range(1, 18) if scalar.is_floating_point())
    return next((decimal for decimal in decimals if scalar.new_tensor(float(decimal)) == scalar), number)


def _written(number: Decimal) -> str:
    if number == number.to_integral_value() and number.adjusted() < _MAX_PLACES:
        return str(int(number))
    number = number.normalize()
    return f"{number:f}" if 0 <= -number.as_tuple().exponent <= _MAX_PLACES else f"{number:e}"
