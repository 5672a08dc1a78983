"""Trainers: TRL's GRPO with media, and one short subclass a method."""

from .base import GRPOVideoTrainer
from .base_config import GRPOVideoConfig
from .rollout import Group

TRAINERS = {"grpo": GRPOVideoTrainer}

__all__ = ["TRAINERS", "GRPOVideoConfig", "GRPOVideoTrainer", "Group"]
