"""What a run learned, to look at."""

from .curve import reward_curve, reward_gain

__all__ = ["reward_curve", "reward_gain"]
