"""Configuration of PGPO."""

from dataclasses import dataclass

from ..options import documented, require_choice, require_positive, require_range
from .grpo_video_config import GRPOVideoConfig


@documented
@dataclass
class PGPOConfig(GRPOVideoConfig):
    """
    Configuration of [`PGPOTrainer`]: every field of [`GRPOVideoConfig`], and the following. Defaults are the paper's
    (arXiv:2604.01840); the loss defaults to DAPO's, as there. Neutral (GRPO): `visual_boost=0`,
    `dependency_threshold=0`, `conserve_mass=False`.

    Parameters:
        dependency (`str`, *optional*, defaults to `"k3"`):
            How much a token depends on the media: `"k3"`, estimated from the sampled token, or `"kl"`, exact over the
            vocabulary.
        dependency_clamp (`float`, *optional*, defaults to `10.0`):
            Largest k3 value, in nats; the log-ratio is then clamped to +-20. `None` is the literal paper.
        dependency_threshold (`float`, *optional*, defaults to `0.4`):
            tau, normalised dependency from which a token is amplified.
        threshold_mode (`str`, *optional*, defaults to `"absolute"`):
            `"absolute"`, or `"quantile"` of the completion's tokens.
        visual_boost (`float`, *optional*, defaults to `2.0`):
            The paper's beta: the most visual token weighs 1 + visual_boost before normalisation.
        weight_floor (`float`, *optional*, defaults to `0.0`):
            Smallest weight before normalisation.
        conserve_mass (`bool`, *optional*, defaults to `True`):
            Whether the weights of a completion sum to its length.
        max_weight (`float`, *optional*):
            Largest weight; the rest is normalised again.
    """

    loss_type: str = "dapo"
    epsilon_high: float | None = 0.28
    dependency: str = "k3"
    dependency_clamp: float | None = 10.0
    dependency_threshold: float = 0.4
    threshold_mode: str = "absolute"
    visual_boost: float = 2.0
    weight_floor: float = 0.0
    conserve_mass: bool = True
    max_weight: float | None = None

    def __post_init__(self):
        super().__post_init__()
        require_choice(self, "dependency", ("k3", "kl"))
        require_choice(self, "threshold_mode", ("absolute", "quantile"))
        require_range(self, "dependency_threshold", 0.0, 1.0)
        require_range(self, "visual_boost", 0.0, None)
        require_range(self, "weight_floor", 0.0, None)
        for name in ("dependency_clamp", "max_weight"):
            if getattr(self, name) is not None:
                require_positive(self, name)
