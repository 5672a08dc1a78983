"""Losses and gradients that are NaN or infinite: found, named, and dumped so that they can be computed again."""

from .guard import NonFiniteError, NonFiniteGuard
from .loss_record import LossRecord
from .samples import samples

__all__ = ["LossRecord", "NonFiniteError", "NonFiniteGuard", "samples"]
