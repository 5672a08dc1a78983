"""Signals: a model goes in, tensors come out."""

from .attention import AttentionTap, HiddenTap, LayerAttention, attention_rows, pooled_rows
from .views import View, blind, blind_recomputed, frames_shuffled, seeded, shuffled, sighted

__all__ = [
    "AttentionTap",
    "HiddenTap",
    "LayerAttention",
    "View",
    "attention_rows",
    "blind",
    "blind_recomputed",
    "frames_shuffled",
    "pooled_rows",
    "seeded",
    "shuffled",
    "sighted",
]
