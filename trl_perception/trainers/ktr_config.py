"""Configuration of Video-KTR."""

from dataclasses import dataclass, field

from .base_config import GRPOVideoConfig
from .options import require_choice, require_range


@dataclass
class KTRConfig(GRPOVideoConfig):
    """
    Configuration of [`KTRTrainer`]: every field of [`GRPOVideoConfig`], and the following. Defaults are the paper's
    (arXiv:2601.19686). Neutral (GRPO): any keep ratio of 1.

    Parameters:
        visual_keep_ratio, temporal_keep_ratio, entropy_keep_ratio (`float`, *optional*, defaults to `0.2`):
            Share of tokens kept for each signal, in [0, 1]. 0 switches the signal off.
        preset (`str`, *optional*, defaults to `"paper"`):
            `"paper"`: |difference|, a share of each completion. `"release"`: signed difference, a quantile of the group.
        weighting (`str`, *optional*, defaults to `"hard"`):
            `"hard"` keeps or drops; `"softmax"`, `"sigmoid"`, `"linear"` and `"exponential"` are the paper's ablation.
        shuffle (`str`, *optional*, defaults to `"grid"`):
            What the shuffled view permutes: `"grid"` temporal cells, `"frames"` raw frames (release).
        blind_positions (`str`, *optional*, defaults to `"original"`):
            Positions of the blind view: `"original"`, or `"recompute"` (release).
        key_token_normalizer (`str`, *optional*, defaults to `"length"`):
            Denominator of a completion's loss: its `"length"` (paper), or its `"kept"` tokens (release).
        mask_kl (`bool`, *optional*, defaults to `False`):
            Whether the KL term covers kept tokens only (release). Goes with `key_token_normalizer="kept"`.
    """

    visual_keep_ratio: float = field(
        default=0.2,
        metadata={
            "help": "Share of completion tokens, in [0, 1], kept for their visual dependency. 1.0 is plain GRPO."
        },
    )
    temporal_keep_ratio: float = field(
        default=0.2,
        metadata={"help": "Share of completion tokens, in [0, 1], kept for their dependency on the order of frames."},
    )
    entropy_keep_ratio: float = field(
        default=0.2, metadata={"help": "Share of completion tokens, in [0, 1], kept for their entropy."}
    )
    preset: str = field(
        default="paper",
        metadata={"help": "'paper': |difference|, share of a completion; 'release': signed, quantile of the group."},
    )
    weighting: str = field(
        default="hard", metadata={"help": "'hard', or 'softmax', 'sigmoid', 'linear', 'exponential' (ablation)."}
    )
    shuffle: str = field(
        default="grid", metadata={"help": "What the shuffled view permutes: 'grid' cells or raw 'frames' (release)."}
    )
    blind_positions: str = field(
        default="original", metadata={"help": "Positions of the blind view: 'original' or 'recompute' (release)."}
    )
    key_token_normalizer: str = field(
        default="length",
        metadata={"help": "Denominator of a completion: its 'length' (paper) or 'kept' tokens (release)."},
    )
    mask_kl: bool = field(
        default=False,
        metadata={"help": "Whether the KL term covers kept tokens only; with key_token_normalizer 'kept'."},
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("visual_keep_ratio", "temporal_keep_ratio", "entropy_keep_ratio"):
            require_range(self, name, 0.0, 1.0)
        if self.visual_keep_ratio == self.temporal_keep_ratio == self.entropy_keep_ratio == 0:
            raise ValueError("All three keep ratios are 0, so no token would be trained on. Raise one of them.")
        require_choice(self, "preset", ("paper", "release"))
        require_choice(self, "weighting", ("hard", "softmax", "sigmoid", "linear", "exponential"))
        require_choice(self, "shuffle", ("grid", "frames"))
        require_choice(self, "blind_positions", ("original", "recompute"))
        require_choice(self, "key_token_normalizer", ("length", "kept"))
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

    loss_type: str = field(default="grpo", metadata={"help": "TRL's loss type; the paper's is a mean per completion."})
