"""Checkpoints: complete or not there, with everything that a run needs to go on as if it had never stopped."""

from .disk import DiskFullError, disk_full_guard
from .folder import last_complete
from .run_facts import require_own_folder
from .saving import ZERO_REWARD, Checkpoints

__all__ = ["ZERO_REWARD", "Checkpoints", "DiskFullError", "disk_full_guard", "last_complete", "require_own_folder"]
