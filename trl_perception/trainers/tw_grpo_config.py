"""Configuration of TW-GRPO."""

from dataclasses import dataclass

from ..objectives.tw_grpo import PADDING
from ..options import documented, require_choice, require_range
from .grpo_video_config import GRPOVideoConfig


@documented
@dataclass
class TWGRPOConfig(GRPOVideoConfig):
    """
    Configuration of [`TWGRPOTrainer`]: every field of [`GRPOVideoConfig`], and the following. Defaults are those of the script
    that was released with the paper (arXiv:2505.24718). Neutral (GRPO): `alpha=1`.

    Parameters:
        alpha (`float`, *optional*, defaults to `1.7`):
            Weight of the position where the completions of a group disagree most. The released code's own default is 1.4.
        padding (`str`, *optional*, defaults to `"skip"`):
            Where completions have ended: `"skip"` compares the others, `"release"` puts a uniform distribution in their place.
    """

    loss_type: str = "grpo"
    alpha: float = 1.7
    padding: str = "skip"

    def __post_init__(self):
        super().__post_init__()
        require_range(self, "alpha", 0.0, None)
        require_choice(self, "padding", tuple(PADDING))
