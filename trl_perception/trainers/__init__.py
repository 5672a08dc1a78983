"""Trainers: TRL's GRPO with media, and one short subclass a method."""

from ..batch import Group
from ..callbacks.nonfinite import NonFiniteError
from .appo_config import APPOConfig
from .appo_trainer import APPOTrainer
from .attn_distill_config import AttnDistillConfig
from .attn_distill_trainer import AttnDistillTrainer
from .grpo_video_config import GRPOVideoConfig
from .grpo_video_trainer import GRPOVideoTrainer
from .ktr_config import KTRConfig
from .ktr_trainer import KTRTrainer
from .pgpo_config import PGPOConfig
from .pgpo_trainer import PGPOTrainer
from .ral_config import RALConfig
from .ral_trainer import RALTrainer
from .replay import Replay, replay

TRAINERS = {
    "grpo": GRPOVideoTrainer,
    "appo": APPOTrainer,
    "ral": RALTrainer,
    "pgpo": PGPOTrainer,
    "ktr": KTRTrainer,
    "attn_distill": AttnDistillTrainer,
}

__all__ = [
    "TRAINERS",
    "APPOConfig",
    "APPOTrainer",
    "AttnDistillConfig",
    "AttnDistillTrainer",
    "GRPOVideoConfig",
    "GRPOVideoTrainer",
    "Group",
    "KTRConfig",
    "KTRTrainer",
    "NonFiniteError",
    "PGPOConfig",
    "PGPOTrainer",
    "RALConfig",
    "RALTrainer",
    "Replay",
    "replay",
]
