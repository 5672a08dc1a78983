"""Configuration of APPO."""

from dataclasses import dataclass

from ..objectives.appo import STRATEGIES
from ..options import documented, require_choice, require_positive, require_range, take_preset
from .grpo_video_config import GRPOVideoConfig

ANY_SUCCESS = 1e-30  # r >= it stands for the release's r > 0
PRESETS = {
    "paper": {
        "loss_type": "dapo",
        "tokens_per_frame": 64,
        "reward_threshold": 0.5,
        "strategy": "soft",
        "divergence": "kl",
        "missing_ranks": "skip",
    },
    "release": {
        "loss_type": "bnpo",
        "tokens_per_frame": 128,
        "reward_threshold": ANY_SUCCESS,
        "strategy": "all",
        "divergence": "release",
        "missing_ranks": "uniform",
    },
}


@documented
@dataclass
class APPOConfig(GRPOVideoConfig):
    """
    Configuration of [`APPOTrainer`]: every field of [`GRPOVideoConfig`], and the following. Defaults are the paper's
    (arXiv:2602.23823), or with `preset="release"` those of the released script for SEED-Bench-R1 (GeWu-Lab/APPO 9225180); a
    field that is set wins over the preset.

    Parameters:
        preset (`str`, *optional*, defaults to `"paper"`):
            `"paper"` or `"release"`: where `loss_type`, `tokens_per_frame`, `reward_threshold`, `strategy`, `divergence` and
            `missing_ranks` come from where they are `None`. For the release's script for NExT-GQA set `strategy="soft"` and
            `tokens_per_frame=512` beside it.
        loss_type (`str`, *optional*):
            TRL's loss type: `"dapo"`, the mean over the tokens of all processes (preset paper), or `"bnpo"`, each process's
            own mean (release).
        attention_layers (`int`, *optional*, defaults to `3`):
            L, the last full-attention layers that are read.
        top_tokens (`int`, *optional*, defaults to `15`):
            K1, tokens whose attention to a frame is averaged.
        top_frames (`int`, *optional*, defaults to `3`):
            K2, frames that each completion votes for.
        tokens_per_frame (`int`, *optional*):
            K3, perception tokens of each completion and selected frame: 64 (preset paper) or 128 (release).
        reward_threshold (`float`, *optional*):
            tau, accuracy from which a completion counts as a success: 0.5 (preset paper), or any above 0 (release).
        strategy (`str`, *optional*):
            Which frames are selected: `"soft"`, those that successes vote for (preset paper); `"hard"`, of these the ones
            that no failure votes for; `"all"`, every vote (release); `"soft_or_all"`, as soft, and every vote in a group
            without successes.
        alpha (`float`, *optional*, defaults to `0.7`):
            Strength: the largest weight is 1 + alpha. 0 is GRPO.
        divergence (`str`, *optional*):
            `"kl"` as defined (preset paper), or `"release"`, the released code's.
        missing_ranks (`str`, *optional*):
            Where a completion has fewer perception tokens than others: `"skip"` compares the others (preset paper),
            `"uniform"` puts a uniform distribution in its place (release).
        normalizer (`str`, *optional*, defaults to `"groups"`):
            `"groups"` (release) or `"frames"` (the paper's 1/K).
        accuracy_reward (`str`, *optional*):
            Name of the reward function that decides about success. `None` takes the one with "accuracy" in its name.
    """

    preset: str = "paper"
    loss_type: str | None = None
    epsilon_high: float | None = 0.28
    attention_layers: int = 3
    top_tokens: int = 15
    top_frames: int = 3
    tokens_per_frame: int | None = None
    reward_threshold: float | None = None
    strategy: str | None = None
    alpha: float = 0.7
    divergence: str | None = None
    missing_ranks: str | None = None
    normalizer: str = "groups"
    accuracy_reward: str | None = None

    def __post_init__(self):
        take_preset(self, PRESETS)
        super().__post_init__()
        for name in ("attention_layers", "top_tokens", "top_frames", "tokens_per_frame"):
            require_positive(self, name)
        require_range(self, "alpha", 0.0, None)
        require_choice(self, "strategy", STRATEGIES)
        require_choice(self, "divergence", ("kl", "release"))
        require_choice(self, "normalizer", ("groups", "frames"))
        require_choice(self, "missing_ranks", ("skip", "uniform"))
