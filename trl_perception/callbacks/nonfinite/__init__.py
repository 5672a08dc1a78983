"""Losses and gradients that are NaN or infinite: found, named, and dumped so that they can be computed again."""

from .dump import samples
from .guard import NonFiniteError, NonFiniteGuard
from .loss_record import LossRecord

__all__ = ["LossRecord", "NonFiniteError", "NonFiniteGuard", "samples"]
