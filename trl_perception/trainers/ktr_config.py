"""Configuration of Video-KTR."""

from dataclasses import dataclass

from ..options import documented, require_choice, require_range, take_preset
from .grpo_video_config import GRPOVideoConfig

PRESETS = {
    "paper": {
        "shuffle": "grid",
        "masked_view_positions": "original",
        "key_token_normalizer": "length",
        "mask_kl": False,
    },
    "release": {
        "shuffle": "frames",
        "masked_view_positions": "recompute",
        "key_token_normalizer": "kept",
        "mask_kl": True,
    },
}


@documented
@dataclass
class KTRConfig(GRPOVideoConfig):
    """
    Configuration of [`KTRTrainer`]: every field of [`GRPOVideoConfig`], and the following. Defaults are the paper's
    (arXiv:2601.19686), or with `preset="release"` those of the released code (zywang0104/Video-KTR 0162d46); a field that
    is set wins over the preset. Neutral (GRPO): any keep ratio of 1.

    Parameters:
        visual_keep_ratio, temporal_keep_ratio, entropy_keep_ratio (`float`, *optional*, defaults to `0.2`):
            Share of tokens kept for each signal, in [0, 1]. 0 switches the signal off.
        preset (`str`, *optional*, defaults to `"paper"`):
            `"paper"`: |difference|, a share of each completion. `"release"`: signed difference, a quantile of the group.
            It is also where `shuffle`, `masked_view_positions`, `key_token_normalizer` and `mask_kl` come from where they are
            `None`.
        visual_view (`str`, *optional*, defaults to `"masked"`):
            What the visual signal compares with: `"masked"` hides the visual tokens (release), `"zeroed"` gives their
            features as zeros (paper).
        weighting (`str`, *optional*, defaults to `"hard"`):
            `"hard"` keeps or drops; `"softmax"`, `"sigmoid"`, `"linear"` and `"exponential"` are the paper's ablation.
        shuffle (`str`, *optional*):
            What the shuffled view permutes: `"grid"` temporal cells (preset paper), `"frames"` raw frames (release).
        masked_view_positions (`str`, *optional*):
            Positions of the masked view: `"original"` (preset paper), or `"recompute"` (release).
        key_token_normalizer (`str`, *optional*):
            Denominator of a completion's loss: its `"length"` (preset paper), or its `"kept"` tokens (release).
        mask_kl (`bool`, *optional*):
            Whether the KL term covers kept tokens only (preset release). Goes with `key_token_normalizer="kept"`.
    """

    visual_keep_ratio: float = 0.2
    temporal_keep_ratio: float = 0.2
    entropy_keep_ratio: float = 0.2
    preset: str = "paper"
    visual_view: str = "masked"
    weighting: str = "hard"
    shuffle: str | None = None
    masked_view_positions: str | None = None
    key_token_normalizer: str | None = None
    mask_kl: bool | None = None

    def __post_init__(self):
        take_preset(self, PRESETS)
        super().__post_init__()
        for name in ("visual_keep_ratio", "temporal_keep_ratio", "entropy_keep_ratio"):
            require_range(self, name, 0.0, 1.0)
        if self.visual_keep_ratio == self.temporal_keep_ratio == self.entropy_keep_ratio == 0:
            raise ValueError("All three keep ratios are 0, so no token would be trained on. Raise one of them.")
        require_choice(self, "visual_view", ("masked", "zeroed"))
        require_choice(self, "weighting", ("hard", "softmax", "sigmoid", "linear", "exponential"))
        require_choice(self, "shuffle", ("grid", "frames"))
        require_choice(self, "masked_view_positions", ("original", "recompute"))
        require_choice(self, "key_token_normalizer", ("length", "kept"))
        if self.visual_view == "zeroed" and self.masked_view_positions == "recompute":
            raise ValueError(
                "visual_view='zeroed' keeps every token at its position, and masked_view_positions is 'recompute'. Set "
                "masked_view_positions='original', or visual_view='masked'."
            )
        if self.mask_kl and self.key_token_normalizer != "kept":
            raise ValueError(
                "mask_kl=True is defined for the mean over kept tokens, as in the release. Set "
                "key_token_normalizer='kept', or mask_kl=False."
            )
        if self.key_token_normalizer == "kept" and (self.loss_type != "grpo" or self.weighting != "hard"):
            raise ValueError(
                f"key_token_normalizer='kept' is a mean over each completion's kept tokens; it goes with "
                f"loss_type='grpo' and weighting='hard', found {self.loss_type!r} and {self.weighting!r}."
            )

    loss_type: str = "grpo"
