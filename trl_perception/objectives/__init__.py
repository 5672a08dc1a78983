"""Formulas: tensors in, `TokenWeights` or `Penalty` out.

Axes: B completions (G when they share one prompt), T completion tokens, S keys, F frames, N vocabulary.
"""

from .appo import appo_token_weights, select_frames
from .attn_distill import attn_distill_penalty
from .divergences import jensen_shannon
from .papo import papo_penalty
from .pgpo import pgpo_token_weights, visual_dependency
from .ral import attention_policy, ral_penalty
from .results import Penalty, TokenWeights
from .t_grpo import t_grpo_bonus
from .tw_grpo import tw_token_weights
from .video_ktr import ktr_token_weights
from .vppo import entropy_penalty, mean_dependency, vppo_sequence_weights, vppo_token_weights

__all__ = [
    "Penalty",
    "TokenWeights",
    "appo_token_weights",
    "attention_policy",
    "attn_distill_penalty",
    "entropy_penalty",
    "jensen_shannon",
    "ktr_token_weights",
    "mean_dependency",
    "papo_penalty",
    "pgpo_token_weights",
    "ral_penalty",
    "select_frames",
    "t_grpo_bonus",
    "tw_token_weights",
    "visual_dependency",
    "vppo_sequence_weights",
    "vppo_token_weights",
]
