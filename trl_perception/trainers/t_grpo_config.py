"""Configuration of T-GRPO."""

from dataclasses import dataclass

from ..options import documented, require_range
from .grpo_video_config import GRPOVideoConfig


@documented
@dataclass
class TGRPOConfig(GRPOVideoConfig):
    """
    Configuration of [`TGRPOTrainer`]: every field of [`GRPOVideoConfig`], and the following. Defaults are those of the paper
    (arXiv:2503.21776). Neutral (GRPO): `temporal_bonus=0`, and then no second group is sampled.

    Parameters:
        temporal_bonus (`float`, *optional*, defaults to `0.3`):
            Added to the accuracy reward, before its weight, of correct completions where the order of the frames helps.
        temporal_margin (`float`, *optional*, defaults to `0.8`):
            The order helps where the mean accuracy is at least this share of the one on shuffled frames.
        correct_above (`float`, *optional*, defaults to `0.1`):
            The accuracy above which a completion is correct.
        shuffled_generations (`int`, *optional*):
            Completions of each video prompt on shuffled frames. `None` takes half of `num_generations`.
        accuracy_reward (`str`, *optional*):
            Name of the reward function that is the accuracy. `None` takes the one with "accuracy" in its name.
    """

    loss_type: str = "grpo"
    temporal_bonus: float = 0.3
    temporal_margin: float = 0.8
    correct_above: float = 0.1
    shuffled_generations: int | None = None
    accuracy_reward: str | None = None

    def __post_init__(self):
        super().__post_init__()
        for name in ("temporal_bonus", "temporal_margin", "correct_above"):
            require_range(self, name, 0.0, None)
        if self.shuffled_generations is None:
            self.shuffled_generations = max(1, self.num_generations // 2)
        require_range(self, "shuffled_generations", 1, None)
