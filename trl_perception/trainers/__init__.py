"""Trainers: TRL's GRPO with media, and one short subclass a method."""

from ..batch import Group, MicroBatch
from ..callbacks.nonfinite import NonFiniteError
from .grpo_video_trainer import GRPOVideoConfig, GRPOVideoTrainer
from .replay import Replay, replay

# One line a method. TRAINERS, `__all__`, the package's own names, recipes, tests and pages follow from these lines.
from .appo_trainer import APPOConfig, APPOTrainer  # isort: skip
from .attn_distill_trainer import AttnDistillConfig, AttnDistillTrainer  # isort: skip
from .ktr_trainer import KTRConfig, KTRTrainer  # isort: skip
from .papo_trainer import PAPOConfig, PAPOTrainer  # isort: skip
from .pgpo_trainer import PGPOConfig, PGPOTrainer  # isort: skip
from .ral_trainer import RALConfig, RALTrainer  # isort: skip
from .t_grpo_trainer import TGRPOConfig, TGRPOTrainer  # isort: skip
from .tw_grpo_trainer import TWGRPOConfig, TWGRPOTrainer  # isort: skip
from .vppo_trainer import VPPOConfig, VPPOTrainer  # isort: skip

_classes = {name: value for name, value in globals().items() if isinstance(value, type)}
TRAINERS = {cls.method: cls for cls in _classes.values() if issubclass(cls, GRPOVideoTrainer)}
"""The name of each method, as recipes give it in `trainer`, and its trainer."""

__all__ = ["TRAINERS", "replay", *_classes]
