"""Post-train vision-language models to see: perception-aware GRPO on video and images, built on TRL."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"

_FROM_TRAINERS = ("GRPOVideoConfig", "GRPOVideoTrainer", "Group")
__all__ = [*_FROM_TRAINERS, "from_pretrained"]

if TYPE_CHECKING:
    from .assets import from_pretrained
    from .trainers import GRPOVideoConfig, GRPOVideoTrainer, Group


def __getattr__(name: str):
    """Names are imported when asked for: `trl_perception.objectives` needs torch alone."""
    if name in _FROM_TRAINERS:
        from . import trainers

        return getattr(trainers, name)
    if name == "from_pretrained":
        from .assets import from_pretrained

        return from_pretrained
    raise AttributeError(f"module 'trl_perception' has no attribute {name!r}")
