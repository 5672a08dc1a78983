"""Reward curves and reports of training runs."""

from .curve import reward_curve, reward_gain

__all__ = ["reward_curve", "reward_gain"]
