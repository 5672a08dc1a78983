"""Sums, means, extremes and ranks over valid entries.

Every helper first replaces what the mask excludes with `torch.where`. A product with the mask would not do: 0 * NaN is
NaN, in the value and again in the gradient.
"""

import math

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Sum of values[mask] along `dim` (over everything when None): 0, still in the graph, where nothing is valid."""
    kept = torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device))
    return kept.sum() if dim is None else kept.sum(dim, keepdim=keepdim)


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Mean of values[mask] along `dim` (over everything when None): 0, still in the graph, where nothing is valid."""
    mask = mask.expand_as(values)
    count = mask.sum() if dim is None else mask.sum(dim, keepdim=keepdim)
    return masked_sum(values, mask, dim, keepdim) / count.clamp(min=1)


def masked_min_max(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Least and greatest valid entry along the last axis, kept as an axis of 1; both 0 where nothing is valid."""
    if values.shape[-1] == 0:
        nothing = values.new_zeros((*values.shape[:-1], 1))
        return nothing, nothing
    some = mask.any(-1, keepdim=True)
    low = torch.where(mask, values, math.inf).amin(-1, keepdim=True)
    high = torch.where(mask, values, -math.inf).amax(-1, keepdim=True)
    return torch.where(some, low, 0.0), torch.where(some, high, 0.0)


def masked_top(scores: Tensor, mask: Tensor, count: int | Tensor) -> Tensor:
    """Mark the `count` highest valid entries along the last axis; ties go to the earlier entry.

    Args: scores (...,T) finite where valid; mask (...,T) bool; count a number, or a tensor (...,1).
    Returns: (...,T) bool, min(count, number of valid entries) True in each row, never True on padding.
    """
    order = torch.where(mask, scores, -math.inf).sort(dim=-1, descending=True, stable=True).indices
    first = torch.arange(scores.shape[-1], device=scores.device) < count
    return torch.zeros_like(mask).scatter(-1, order, first.expand_as(mask)) & mask


def masked_quantile(values: Tensor, mask: Tensor, quantile: float) -> Tensor:
    """The `quantile` (in [0, 1], linear between neighbours) of each row's valid entries.

    Args: values (R,T) finite where valid; mask (R,T) bool.
    Returns: (R,1), 0 where nothing is valid.
    """
    if values.shape[-1] == 0:
        return values.new_zeros((values.shape[0], 1))
    ordered = torch.where(mask, values, math.inf).sort(dim=-1).values
    # Rounded: 0.07 * 100 is 7.000000000000001 in floating point, and a cut there by `>=` would lose entry 7.
    positions = (quantile * (mask.sum(-1, keepdim=True).double() - 1).clamp(min=0)).round(decimals=6)
    low, high = ordered.gather(-1, positions.floor().long()), ordered.gather(-1, positions.ceil().long())
    share = (positions % 1).to(values.dtype)
    between = torch.lerp(low, high, share).clamp(min=low, max=high)
    return torch.where(mask.any(-1, keepdim=True), between, 0.0)
