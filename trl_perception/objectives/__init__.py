"""Formulas: tensors in, `TokenWeights` or `Penalty` out.

Axes: B completions (G when they share one prompt), T completion tokens, S keys, F frames, N vocabulary.
"""

from .appo import appo_token_weights, select_frames
from .attn_distill import attn_distill_penalty
from .divergences import jensen_shannon
from .pgpo import pgpo_token_weights, visual_dependency
from .ral import attention_policy, ral_penalty
from .results import Penalty, TokenWeights
from .video_ktr import ktr_token_weights

__all__ = [
    "Penalty",
    "TokenWeights",
    "appo_token_weights",
    "attention_policy",
    "attn_distill_penalty",
    "jensen_shannon",
    "ktr_token_weights",
    "pgpo_token_weights",
    "ral_penalty",
    "select_frames",
    "visual_dependency",
]
