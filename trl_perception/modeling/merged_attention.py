"""Attention to a prefix and to own keys, each read where it stands and merged by their log-sum-exp."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

_aten = torch.ops.aten


def can_merge(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether PyTorch has a kernel for these tensors (N,heads,T,d) that returns the log-sum-exp of its scores."""
    if query.device.type == "cpu":
        return query.size(-1) == value.size(-1)
    if query.device.type != "cuda":
        return False
    tensors = _in_autocast(query, key, value)
    return torch.backends.cuda.can_use_flash_attention(torch.backends.cuda.SDPAParams(*tensors, None, 0.0, False, True))


def merged_attention(
    query: Tensor, prefix_key: Tensor, prefix_value: Tensor, key: Tensor, value: Tensor, scale: float | None = None
) -> Tensor:
    """Return  softmax(scale q [k_prefix, k_own]^T) [v_prefix; v_own]  without the joined keys and without a mask.

    With o and l the attention and the log-sum-exp of the scores of each part alone,
    out = e^(l_prefix - l) o_prefix + e^(l_own - l) o_own,  l = log(e^l_prefix + e^l_own). The gradient of each part is that
    of attention with the merged `out` and l.

    Args:
        query: (G,H,W,d). prefix_key, prefix_value: (1,K,P,d), seen by all queries; H a multiple of K, P at least 1.
        key, value: (G,K,W,d), seen causally by the queries of their row.
        scale: d^-0.5 where None.
    Returns: (G,H,W,d).
    """
    tensors = _in_autocast(query, prefix_key, prefix_value, key, value)
    return _MergedAttention.apply(*tensors, query.size(-1) ** -0.5 if scale is None else scale)


class _MergedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        query: Tensor,
        prefix_key: Tensor,
        prefix_value: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
    ) -> Tensor:
        groups = prefix_key.size(1)
        repeats = query.size(1) // groups
        of_prefix, prefix_sum, ctx.prefix_state = _attend(_fold(query, groups), prefix_key, prefix_value, False, scale)
        own, own_sum, ctx.own_state = _attend(query, *(_by_head(part, repeats) for part in (key, value)), True, scale)
        prefix_sum = _unfold(prefix_sum[..., None], query)
        total = torch.logaddexp(prefix_sum, own_sum[..., None])
        out = (prefix_sum - total).exp() * _unfold(of_prefix, query) + (own_sum[..., None] - total).exp() * own
        out = out.to(query.dtype)
        ctx.save_for_backward(query, prefix_key, prefix_value, key, value, out, total)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, prefix_key, prefix_value, key, value, out, total = ctx.saved_tensors
        groups = prefix_key.size(1)
        repeats = query.size(1) // groups
        folded = [_fold(tensor, groups) for tensor in (grad, query, out, total)]
        of_prefix = _gradients(*folded, prefix_key, prefix_value, False, ctx.scale, ctx.prefix_state)
        keys = (_by_head(part, repeats) for part in (key, value))
        own = _gradients(grad, query, out, total, *keys, True, ctx.scale, ctx.own_state)
        of_keys = (part.unflatten(1, (groups, repeats)).sum(2) for part in own[1:])
        return own[0] + _unfold(of_prefix[0], query), *of_prefix[1:], *of_keys, None


def _attend(query: Tensor, key: Tensor, value: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor, tuple]:
    """Attention (N,H,T,d), log-sum-exp (N,H,T) in float32 or finer, and what the kernel's backward wants besides."""
    if query.device.type == "cpu":
        out, total = _aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scale)
        return out, total, ()
    out, total, *state, _ = _aten._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, scale=scale)
    return out, total, tuple(state)  # borders of sequences and their lengths (2 each), random state (2)


def _gradients(
    grad: Tensor,
    query: Tensor,
    out: Tensor,
    total: Tensor,
    key: Tensor,
    value: Tensor,
    causal: bool,
    scale: float,
    state: tuple,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, for probabilities  exp(scale q k^T - total), total (N,H,T,1)."""
    tensors = (grad, query, key, value, out, total[..., 0].contiguous())
    if query.device.type == "cpu":
        return _aten._scaled_dot_product_flash_attention_for_cpu_backward(*tensors, 0.0, causal, scale=scale)
    return _aten._scaled_dot_product_flash_attention_backward(
        *tensors, *state[:4], 0.0, causal, *state[4:], scale=scale
    )


def _fold(tensor: Tensor, groups: int) -> Tensor:
    """(G,H,W,n) -> (1,K,G*(H/K)*W,n): all queries of a key's head, for attention in which every query sees every key."""
    return tensor.unflatten(1, (groups, -1)).transpose(0, 1).flatten(1, 3)[None]


def _unfold(tensor: Tensor, query: Tensor) -> Tensor:
    """(1,K,G*(H/K)*W,n) -> (G,H,W,n)."""
    rows, heads, width, _ = query.shape
    groups = tensor.size(1)
    return tensor[0].unflatten(1, (rows, heads // groups, width)).transpose(0, 1).flatten(1, 2)


def _by_head(tensor: Tensor, repeats: int) -> Tensor:
    """(G,K,W,d) -> (G,H,W,d)."""
    return tensor.repeat_interleave(repeats, 1) if repeats > 1 else tensor


def _in_autocast(*tensors: Tensor) -> list[Tensor]:
    """The tensors in the type in which autocast would run attention."""
    device = tensors[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensors[0].dtype
    return [tensor.to(dtype) for tensor in tensors]
