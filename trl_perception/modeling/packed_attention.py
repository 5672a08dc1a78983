"""Attention over a packed row with the kernels that are there: SDPA, flash attention, FlexAttention."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .merged_attention import can_merge, merged_attention
from .packing import PackedMask, Packing, PrefixGroup
from .shared_prefix import SharedKeys, attend_to_shared_prefix, plain_softmax

FLASH = ("flash_attention_2", "flash_attention_3")
SPLIT = ("sdpa", *FLASH)
BACKENDS = (*SPLIT, "flex_attention")


def mask_of(packing: Packing, implementation: str) -> PackedMask | BlockMask:
    """What a model with this attention implementation takes as the `attention_mask` of the packed row."""
    if implementation == "flex_attention":
        return block_mask_of(packing, compiled_block_mask() if packing.source.is_cuda else create_block_mask)
    follow_packings(implementation)
    return PackedMask.of(packing)


def follow_packings(implementation: str) -> None:
    """Teach the registered attention function to follow a `PackedMask` and to take `SharedKeys`; other calls pass unchanged.

    It stays taught: gradient checkpointing calls attention again in the backward.
    """
    running = ALL_ATTENTION_FUNCTIONS[implementation]
    if getattr(running, "follows_packings", False):
        return

    def attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any):
        if isinstance(key, SharedKeys):
            return attend_to_shared_prefix(running, module, query, key, value, attention_mask, **kwargs)
        if not isinstance(attention_mask, PackedMask):
            return running(module, query, key, value, attention_mask, **kwargs)
        return split_attention(
            running, module, query, key, value, attention_mask.packing, masked=implementation not in FLASH, **kwargs
        )

    attention.follows_packings = True
    ALL_ATTENTION_FUNCTIONS[implementation] = attention


def split_attention(
    running: Callable,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    packing: Packing,
    *,
    masked: bool,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention of a packed row, run by run: the prefix, causal; and its segments over prefix and own keys.

    Segments behind a prefix are [`merged_attention`] of PyTorch's flash kernels. Where there is none for the tensors, their keys
    are joined: SDPA counts causality from the top left and takes a mask, flash attention counts from the bottom right.

    Args:
        running: the attention function of transformers' interface.
        query: (1,H,L,d); key, value: (1,K,L,d).
        masked: whether `running` is SDPA.
    Returns: (1,L,H,d), as the interface does.
    """
    packing.served += 1
    kwargs["position_ids"] = None  # flash attention would read other sequences into them
    pieces = []
    for run in packing.runs:
        prefix = slice(run.start, run.start + run.prefix)
        if run.prefix:
            part = (tensor[:, :, prefix] for tensor in (query, key, value))
            pieces.append(running(module, *part, None, **kwargs)[0])
        shared = [tensor[:, :, prefix] for tensor in (key, value)]
        queries, *own = (segments_of(tensor, run) for tensor in (query, key, value))
        if run.prefix and plain_softmax(kwargs) and can_merge(queries, *own):
            out = merged_attention(queries, *shared, *own, kwargs.get("scaling")).transpose(1, 2)  # (G,W,H,d)
        else:
            joined = (
                torch.cat([part.expand(len(queries), -1, -1, -1), rest], 2)
                for part, rest in zip(shared, own, strict=True)
            )
            mask = run.visible[None, None] if masked else None
            out = running(module, queries, *joined, mask, **kwargs)[0]
        pieces.append((out.flatten(0, 1) if run.full else out.flatten(0, 1)[run.filled])[None])
    return torch.cat(pieces, dim=1), None


def run_and_segment(packing: Packing) -> tuple[Tensor, Tensor]:
    """The rule as two labels of each packed token: (L,) run, and (L,) segment, 0 in the prefix.

    A key is visible to a query if it is not later, of the same run, and of segment 0 or of the query's own.
    """
    run_of = torch.zeros(packing.length, dtype=torch.long, device=packing.source.device)
    segment_of = torch.zeros_like(run_of)
    for number, run in enumerate(packing.runs):
        run_of[run.start :] = number
        width = run.segments.size(1)
        segment_of[run.segments.flatten()[run.filled]] = 1 + run.filled // width
    return run_of, segment_of


def segments_of(tensor: Tensor, run: PrefixGroup) -> Tensor:
    """(1,N,L,d) -> (G,N,W,d), the tokens of each segment; anything where it is shorter than W."""
    count, width = run.segments.shape
    if run.full:
        first = run.start + run.prefix
        own = tensor[0, :, first : first + count * width]
    else:
        own = tensor[0].index_select(1, run.segments.flatten())
    return own.unflatten(1, (count, width)).transpose(0, 1)


def block_mask_of(packing: Packing, create: Callable[..., BlockMask]) -> BlockMask:
    """The rule for FlexAttention, by `create_block_mask` or its compiled form."""
    run_of, segment_of = run_and_segment(packing)

    def rule(batch, head, query, key):
        own = (segment_of[key] == 0) | (segment_of[key] == segment_of[query])
        return (query >= key) & (run_of[query] == run_of[key]) & own

    size = packing.length
    mask = create(rule, None, None, size, size, device=packing.source.device)
    mask.packing = packing
    return mask


@cache
def compiled_block_mask() -> Callable[..., BlockMask]:
    """`create_block_mask` without its (L,L) tensors; compiled for the first length, and once more for all others."""
    return torch.compile(create_block_mask)
