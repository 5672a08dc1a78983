"""Configuration of VPPO."""

from dataclasses import dataclass

from ..options import documented, require_choice, require_range
from ..views import MASKS
from .grpo_video_config import GRPOVideoConfig


@documented
@dataclass
class VPPOConfig(GRPOVideoConfig):
    """
    Configuration of [`VPPOTrainer`]: every field of [`GRPOVideoConfig`], and the following. Defaults are those of the paper
    (arXiv:2510.09285) at 7B. Neutral (GRPO): `keep_ratio=1`, `sequence_factor=False`, `entropy_penalty=0`.

    Parameters:
        keep_ratio (`float`, *optional*, defaults to `0.4`):
            Share of a completion's tokens, those that depend most on the media, that get credit.
        sequence_factor (`bool`, *optional*, defaults to `True`):
            Whether completions that depend more on the media get larger advantages.
        factor_floor (`float`, *optional*, defaults to `0.9`):
            The factor of the completion that depends least.
        statistics (`str`, *optional*, defaults to `"group"`):
            Over what the factors are compared and have mean 1: `"group"`, or `"global"`, all completions of a rollout on all
            processes.
        entropy_penalty (`float`, *optional*, defaults to `0.06`):
            Weight of the entropy, estimated from sampled tokens, that is added to the loss. The paper has 0.12 for Qwen3-VL-8B.
        mask_probability (`float`, *optional*, defaults to `0.5`):
            Share of the 14x14 patches of an image or a frame that are blackened.
        mask (`str`, *optional*, defaults to `"frames"`):
            `"frames"` draws the patches of each frame of a video, `"tube"` once for all its frames.
    """

    loss_type: str = "dapo"
    epsilon_high: float | None = 0.28
    keep_ratio: float = 0.4
    sequence_factor: bool = True
    factor_floor: float = 0.9
    statistics: str = "group"
    entropy_penalty: float = 0.06
    mask_probability: float = 0.5
    mask: str = "frames"

    def __post_init__(self):
        super().__post_init__()
        for name in ("keep_ratio", "factor_floor", "mask_probability"):
            require_range(self, name, 0.0, 1.0)
        require_range(self, "entropy_penalty", 0.0, None)
        require_choice(self, "statistics", ("group", "global"))
        require_choice(self, "mask", MASKS)
