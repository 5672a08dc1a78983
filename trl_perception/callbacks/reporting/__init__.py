"""What a run tells of itself: metrics, what trackers show, records for the report, the model card."""

from .logging import Telling

__all__ = ["Telling"]
