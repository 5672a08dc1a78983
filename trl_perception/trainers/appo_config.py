"""Configuration of APPO."""

from dataclasses import dataclass, field

from .base_config import GRPOVideoConfig
from .options import require_choice, require_positive, require_range


@dataclass
class APPOConfig(GRPOVideoConfig):
    """
    Configuration of [`APPOTrainer`]: every field of [`GRPOVideoConfig`], and the following. Defaults are the paper's
    (arXiv:2602.23823); the loss defaults to DAPO's, as there.

    Parameters:
        attention_layers (`int`, *optional*, defaults to `3`):
            L, the last full-attention layers that are read.
        top_tokens (`int`, *optional*, defaults to `15`):
            K1, tokens whose attention to a frame is averaged.
        top_frames (`int`, *optional*, defaults to `3`):
            K2, frames that each completion votes for.
        tokens_per_frame (`int`, *optional*, defaults to `64`):
            K3, perception tokens of each completion and selected frame.
        reward_threshold (`float`, *optional*, defaults to `0.5`):
            tau, accuracy from which a completion counts as a success.
        strategy (`str`, *optional*, defaults to `"soft"`):
            Which votes select frames: `"soft"` those of successes, `"hard"` those of successes alone, `"all"` every one.
        alpha (`float`, *optional*, defaults to `0.7`):
            Strength: the largest weight is 1 + alpha. 0 is GRPO.
        divergence (`str`, *optional*, defaults to `"kl"`):
            `"kl"` as defined, or `"release"`, the released code's.
        normalizer (`str`, *optional*, defaults to `"groups"`):
            `"groups"` (release) or `"frames"` (the paper's 1/K).
        accuracy_reward (`str`, *optional*):
            Name of the reward function that decides about success. `None` takes the one with "accuracy" in its name.
    """

    loss_type: str = field(default="dapo", metadata={"help": "TRL's loss type; the paper trains with DAPO."})
    epsilon_high: float | None = field(default=0.28, metadata={"help": "Upper clip range; the paper's 0.28."})
    attention_layers: int = field(default=3, metadata={"help": "L, the last full-attention layers that are read."})
    top_tokens: int = field(default=15, metadata={"help": "K1, tokens whose attention to a frame is averaged."})
    top_frames: int = field(default=3, metadata={"help": "K2, frames that each completion votes for."})
    tokens_per_frame: int = field(
        default=64, metadata={"help": "K3, perception tokens of each completion and selected frame."}
    )
    reward_threshold: float = field(
        default=0.5, metadata={"help": "tau, accuracy from which a completion counts as a success."}
    )
    strategy: str = field(
        default="soft",
        metadata={"help": "Which votes select frames: 'soft' successes', 'hard' successes' alone, 'all' every one."},
    )
    alpha: float = field(default=0.7, metadata={"help": "The largest weight is 1 + alpha. 0 is GRPO."})
    divergence: str = field(default="kl", metadata={"help": "'kl' as defined, or 'release', the released code's."})
    normalizer: str = field(default="groups", metadata={"help": "'groups' (release) or 'frames' (the paper's 1/K)."})
    accuracy_reward: str | None = field(
        default=None,
        metadata={
            "help": "Reward function that decides about success. None takes the one with 'accuracy' in its name."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("attention_layers", "top_tokens", "top_frames", "tokens_per_frame"):
            require_positive(self, name)
        require_range(self, "alpha", 0.0, None)
        require_choice(self, "strategy", ("soft", "hard", "all"))
        require_choice(self, "divergence", ("kl", "release"))
        require_choice(self, "normalizer", ("groups", "frames"))
