"""Checkpoints: complete or not there, with everything that a run needs to resume as if it had never stopped."""

from .disk import DiskFullError, disk_full_guard
from .folder import last_complete
from .saving import Checkpoints

__all__ = ["Checkpoints", "DiskFullError", "disk_full_guard", "last_complete"]
