"""Signals: a model goes in, tensors come out."""

from .attention import AttentionTap, HiddenTap, LayerAttention, attention_rows, pooled_rows
from .head import Head, base_model, divergence, head_of, log_probs
from .views import View, blind, blind_recomputed, frames_shuffled, seeded, shuffled, sighted

__all__ = [
    "AttentionTap",
    "Head",
    "HiddenTap",
    "LayerAttention",
    "View",
    "attention_rows",
    "base_model",
    "blind",
    "blind_recomputed",
    "divergence",
    "frames_shuffled",
    "head_of",
    "log_probs",
    "pooled_rows",
    "seeded",
    "shuffled",
    "sighted",
]
