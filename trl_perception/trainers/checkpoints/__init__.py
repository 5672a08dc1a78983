"""Checkpoints: complete or not there, with everything that a run needs to go on as if it had never stopped."""

from .disk import DiskFullError, told_when_full
from .folder import last_complete
from .saving import Checkpoints

__all__ = ["Checkpoints", "DiskFullError", "last_complete", "told_when_full"]
