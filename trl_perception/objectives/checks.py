"""What an objective refuses, and in which words: the value found, the value wanted, the setting to change."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype to compute in: float64 where an input is float64, else float32."""
    return torch.float64 if any(tensor.dtype == torch.float64 for tensor in tensors) else torch.float32


def check_float(name: str, tensor: Tensor, axes: str, like: tuple[int, ...] | None = None) -> None:
    """Refuse a tensor that is not floating point, has not one axis per letter of `axes`, or not the shape `like`."""
    if not tensor.is_floating_point():
        raise ValueError(f"{name} has dtype {tensor.dtype}; wanted a floating dtype. Pass {name}.float().")
    check_shape(name, tensor, axes, like)


def check_shape(name: str, tensor: Tensor, axes: str, like: tuple[int, ...] | None = None) -> None:
    """Refuse a tensor that has not one axis per letter of `axes`, or not the shape `like`."""
    letters = f"({','.join(axes)})"
    if tensor.ndim != len(axes):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; wanted {len(axes)} axes, {letters}.")
    if like is not None and tuple(tensor.shape) != tuple(like):
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}; wanted {letters} = {tuple(like)}, as the other arguments have. "
            "Cut or pad all of them from the same batch."
        )


def check_mask(name: str, mask: Tensor, axes: str, like: tuple[int, ...] | None = None) -> Tensor:
    """The mask as bool; refused unless it is bool or holds only 0 and 1 (TRL's masks are integers)."""
    check_shape(name, mask, axes, like)
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"{name} ({mask.dtype}) holds values other than 0 and 1; wanted True or 1 on valid entries.")
    return mask.bool()


_waiting: list[tuple[Tensor, Callable[[], Exception]]] | None = None  # what `checks_together` looks at in its end


@contextmanager
def checks_together() -> Iterator[None]:
    """Context manager at whose end values are checked, so that the host waits once for all of them.

    What is computed in between from values that are refused is not used.
    """
    global _waiting
    outer, _waiting = _waiting, []
    try:
        yield
    finally:
        found, _waiting = _waiting, outer
        for device in {wrong.device for wrong, _ in found}:
            here = [(wrong, error) for wrong, error in found if wrong.device == device]
            for is_wrong, (_, error) in zip(torch.stack([wrong for wrong, _ in here]).tolist(), here, strict=True):
                if is_wrong:
                    raise error()


def refuse(wrong: Tensor, error: Callable[[], Exception]) -> None:
    """Raise the error where any entry is True; within [`checks_together`], at its end."""
    if _waiting is not None:
        _waiting.append((wrong.any(), error))
    elif wrong.any():
        raise error()


def check_finite(name: str, tensor: Tensor, mask: Tensor | None = None) -> None:
    """Refuse NaN and infinity where `mask` is True (everywhere without one); padding may hold anything."""
    wrong = ~torch.isfinite(tensor)
    if mask is not None:
        wrong = wrong & mask

    def error() -> ValueError:
        index = tuple(wrong.nonzero()[0].tolist())
        return ValueError(
            f"{name}{list(index)} is {tensor[index].item()}, and that entry is not padding; wanted a finite number. "
            "The forward that made it overflowed, or the mask does not belong to it."
        )

    refuse(wrong, error)


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value outside `choices`."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; wanted one of {', '.join(map(repr, choices))}.")


def check_range(name: str, value: float, low: float, high: float = math.inf) -> None:
    """Refuse a number outside [low, high], NaN and infinity included."""
    if not (low <= value <= high) or math.isinf(value):
        wanted = f"a finite number >= {low}" if math.isinf(high) else f"a number in [{low}, {high}]"
        raise ValueError(f"{name} is {value}; wanted {wanted}.")


def check_count(name: str, value: int) -> None:
    """Refuse anything but a whole number >= 1."""
    if value != int(value) or value < 1:
        raise ValueError(f"{name} is {value}; wanted a whole number >= 1.")


def check_divisor(name: str, value: float | None) -> None:
    """Refuse a number that a sum cannot be divided by; None leaves it to the objective."""
    if value is not None and not 0 < value < math.inf:
        raise ValueError(f"{name} is {value}; wanted a finite number > 0, or None.")
