"""Signals: a model goes in, tensors come out."""

from .attention import AttentionTap, HiddenTap, LayerAttention, TokenStates, attention_rows, paused, pooled_rows
from .group_forward import group_forward, shared_runs, token_ratio, why_not_packed
from .head import Head, base_model, divergence, head_is_sharded, head_of, log_probs, whole_head
from .positions import POSITION_RULES, apply_position_rule, check_position_rule, position_rule_of
from .prefill import prefill_once, why_not_prefilled
from .row_forward import row_forward
from .tower import OneTowerRun
from .views import View, blind, blind_recomputed, frames_shuffled, seeded, shuffled, sighted, zeroed
from .vision import adapted_modules, encode, media_kwargs, pixels_of, same_frozen_tower, why_not_frozen
from .whole import keep_head_whole, whole_parameters

__all__ = [
    "POSITION_RULES",
    "AttentionTap",
    "Head",
    "HiddenTap",
    "LayerAttention",
    "OneTowerRun",
    "TokenStates",
    "View",
    "adapted_modules",
    "apply_position_rule",
    "attention_rows",
    "base_model",
    "blind",
    "blind_recomputed",
    "check_position_rule",
    "divergence",
    "encode",
    "frames_shuffled",
    "group_forward",
    "head_is_sharded",
    "head_of",
    "keep_head_whole",
    "log_probs",
    "media_kwargs",
    "paused",
    "pixels_of",
    "pooled_rows",
    "position_rule_of",
    "prefill_once",
    "row_forward",
    "same_frozen_tower",
    "seeded",
    "shared_runs",
    "shuffled",
    "sighted",
    "token_ratio",
    "whole_head",
    "whole_parameters",
    "why_not_frozen",
    "why_not_packed",
    "why_not_prefilled",
    "zeroed",
]
