"""Configuration of PAPO."""

from dataclasses import dataclass

from ..options import documented, require_choice, require_range
from ..views import MASKS
from .grpo_video_config import GRPOVideoConfig


@documented
@dataclass
class PAPOConfig(GRPOVideoConfig):
    """
    Configuration of [`PAPOTrainer`]: every field of [`GRPOVideoConfig`], and the following. Defaults are those of the paper
    (arXiv:2507.06448) for DAPO at 3B. Neutral (GRPO): `perception_weight=0`, `entropy_weight=0`, `masked_entropy_weight=0`.

    Parameters:
        perception_weight (`float`, *optional*, defaults to `0.01`):
            gamma, weight of the divergence from the distribution on masked media. The paper's GRPO at 7B has 0.02.
        entropy_weight, masked_entropy_weight (`float`, *optional*, defaults to `0.03`):
            eta_1 and eta_2, weights of the entropy with media and with masked media. The paper's GRPO at 7B has 0.05.
        masked_gradient (`bool`, *optional*, defaults to `False`):
            Whether log p on masked media is computed at every update, with gradient (the paper's second entropy term), or
            once a rollout without (release), where `masked_entropy_weight` changes the logged loss alone.
        mask_probability (`float`, *optional*, defaults to `0.6`):
            Share of the 14x14 patches of an image or a frame that are blackened.
        mask (`str`, *optional*, defaults to `"frames"`):
            `"frames"` draws the patches of each frame of a video, `"tube"` once for all its frames.
    """

    loss_type: str = "dapo"
    epsilon_high: float | None = 0.28
    perception_weight: float = 0.01
    entropy_weight: float = 0.03
    masked_entropy_weight: float = 0.03
    masked_gradient: bool = False
    mask_probability: float = 0.6
    mask: str = "frames"

    def __post_init__(self):
        super().__post_init__()
        for name in ("perception_weight", "entropy_weight", "masked_entropy_weight"):
            require_range(self, name, 0.0, None)
        require_range(self, "mask_probability", 0.0, 1.0)
        require_choice(self, "mask", MASKS)
