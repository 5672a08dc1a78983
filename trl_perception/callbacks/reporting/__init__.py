"""What a run reports: records of rollouts, and what trackers show of them."""

from .records import RolloutRecords
from .trackers import RolloutTracker

__all__ = ["RolloutRecords", "RolloutTracker"]
