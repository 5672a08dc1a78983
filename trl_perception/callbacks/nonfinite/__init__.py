"""Faults in learning: what is NaN or infinite, told with a dump that can be run again."""

from .dump import samples
from .guard import NonFinite, NonFiniteError
from .replay import Replay, replay

__all__ = ["NonFinite", "NonFiniteError", "Replay", "replay", "samples"]
