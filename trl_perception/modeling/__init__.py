"""Forwards, attention rows, log-probabilities and counterfactual views of a model, as tensors."""

from .attention import AttentionTap, HiddenTap, LayerAttention, TokenStates, attention_rows, pooled_rows
from .group_forward import group_forward, packing_unsupported_reason, shared_runs, token_ratio
from .head import Head, base_model, divergence, gather_lm_head, head_is_sharded, head_of, log_probs
from .patch_embedding import project_patches
from .positions import POSITION_RULES, apply_position_rule, check_position_rule, position_rule_of
from .prefill import prefill_once, shared_prefill_unsupported_reason, shares_keys
from .row_forward import row_forward
from .segment_attention import batch_segments
from .tower import OneTowerRun
from .views import View, frames_shuffled, media_masked, media_masked_recomputed, seeded, shuffled, with_media, zeroed
from .vision import (
    adapted_modules,
    encode,
    feature_reuse_unsupported_reason,
    forward_kwargs,
    media_kwargs,
    on_device,
    pixels_of,
    same_frozen_tower,
)
from .vision_setup import set_up_vision
from .whole import gather_parameters, keep_lm_head_unsharded

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
    "batch_segments",
    "check_position_rule",
    "divergence",
    "encode",
    "feature_reuse_unsupported_reason",
    "forward_kwargs",
    "frames_shuffled",
    "gather_lm_head",
    "gather_parameters",
    "group_forward",
    "head_is_sharded",
    "head_of",
    "keep_lm_head_unsharded",
    "log_probs",
    "media_kwargs",
    "media_masked",
    "media_masked_recomputed",
    "on_device",
    "packing_unsupported_reason",
    "pixels_of",
    "pooled_rows",
    "position_rule_of",
    "prefill_once",
    "project_patches",
    "row_forward",
    "same_frozen_tower",
    "seeded",
    "set_up_vision",
    "shared_prefill_unsupported_reason",
    "shared_runs",
    "shares_keys",
    "shuffled",
    "token_ratio",
    "with_media",
    "zeroed",
]
