"""Attention of a vision tower within frames or windows, as one call a length instead of one call a segment.

The towers of the Qwen-VL and GLM families attend within each frame, and Qwen2.5-VL's within windows of a frame in most layers.
Without flash attention transformers makes a call a segment and layer: a clip of 256 frames at 224 x 224 pixels is 512 windows
in each of 28 layers.
"""

from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import AttentionInterface

# transformers gives all tokens of a tower and the borders of its segments to a kernel whose name contains "flash".
SEGMENT_ATTENTION = "sdpa_segments_in_flash_layout"


class Segments(NamedTuple):
    """The segments between cumulative borders, grouped by length: (length, number), shortest first."""

    groups: list[tuple[int, int]]
    order: Tensor | None  # (N,) positions by length of their segment; None where one length makes it the identity
    inverse: Tensor | None


_segments: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # by borders, which the layers of a forward share


def segments_of(borders: Tensor) -> Segments:
    """The segments between `borders` (S+1,), computed once a tensor: one read from the device a forward."""
    if (known := _segments.get(borders)) is None:
        lengths = borders.cpu().long().diff()
        sizes, numbers = lengths[lengths > 0].unique(return_counts=True)
        order = inverse = None
        if len(sizes) > 1:
            order = lengths.repeat_interleave(lengths).argsort(stable=True)
            order, inverse = order.to(borders.device), order.argsort().to(borders.device)
        known = Segments(list(zip(sizes.tolist(), numbers.tolist(), strict=True)), order, inverse)
        _segments[borders] = known
    return known


def segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    cu_seq_lens_q: Tensor,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Return  softmax(q k^T * scaling) v  within each segment, (1,N,H,D), for query, key and value (1,H,N,D).

    `cu_seq_lens_q` (S+1,): cumulative borders of the segments. Segments of the same length form one batch.
    """
    segments = segments_of(cu_seq_lens_q)
    tokens = [tensor[0].transpose(0, 1) for tensor in (query, key, value)]  # (N,H,D)
    if segments.order is not None:
        tokens = [tensor[segments.order] for tensor in tokens]
    parts = (tensor.split([length * number for length, number in segments.groups]) for tensor in tokens)
    outputs = []
    for (length, number), *qkv in zip(segments.groups, *parts, strict=True):
        batch = (part.unflatten(0, (number, length)).transpose(1, 2) for part in qkv)  # (S,H,L,D)
        output = scaled_dot_product_attention(*batch, dropout_p=dropout, scale=scaling)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    output = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
    return (output if segments.inverse is None else output[segments.inverse])[None], None


AttentionInterface.register(SEGMENT_ATTENTION, segment_attention)


def batch_segments(model: nn.Module) -> None:
    """Use [`segment_attention`] in the layers of a model that attend by segments with SDPA; other kernels stay."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if (
            getattr(config, "_attn_implementation", None) == "sdpa"
            and "cu_seqlens" in signature(module.forward).parameters
        ):
            config._attn_implementation = SEGMENT_ATTENTION
