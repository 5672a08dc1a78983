"""Decoders of which some layers attend to a window of the last tokens."""

from typing import Any

import torch
from torch import Tensor, nn

from .family import Family


class Windowed(Family):
    """Windows count tokens by their places in the whole prompt, although a view leaves some of them out."""

    has_windows = True

    def mask_at_positions(self, model: nn.Module, attention_mask: Tensor, positions: Tensor) -> Any:
        config = model.config.get_text_config()
        places = positions[0]
        causal = places[:, None] >= places
        near = causal & (places[:, None] - places < config.sliding_window)
        keys = attention_mask.bool()[:, None, None, :]
        allowed = {"full_attention": causal & keys, "sliding_attention": near & keys}
        # Padding sees itself, so that no row of a softmax is empty.
        own = torch.eye(len(places), dtype=torch.bool, device=places.device)
        low = torch.finfo(model.dtype).min
        return {kind: torch.where(mask | own, 0.0, low).to(model.dtype) for kind, mask in allowed.items()}
