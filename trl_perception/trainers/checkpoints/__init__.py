"""Checkpoints: complete or not there, with everything that a run needs to go on as if it had never stopped."""

from .disk import DiskFullError, told_when_full
from .saving import Checkpoints

__all__ = ["Checkpoints", "DiskFullError", "told_when_full"]
