"""Video-KTR: learn only from key tokens, singled out by the video, by the order of its frames or by doubt."""

import math

import torch
from torch import Tensor

from .checks import check_choice, check_finite, check_float, check_mask, check_range, working_dtype
from .masked import masked_mean, masked_min_max, masked_quantile, masked_sum, masked_top
from .results import TokenWeights

SOFT_WIDTH = 0.1  # of the range of scores
WEIGHTINGS = ("hard", "softmax", "sigmoid", "linear", "exponential")


def key_token_mask(scores: Tensor, valid: Tensor, keep_ratio: float) -> Tensor:
    """Keep the ceil(keep_ratio * n) highest-scoring of each completion's n valid tokens.

    m[b,t] = valid[b,t] and rank of scores[b,t] among valid tokens < ceil(keep_ratio * n_b)

    Args: scores (B,T) float, finite where valid, anything on padding; valid (B,T) bool; keep_ratio in [0, 1].
    Returns: (B,T) bool, False on padding. Ties go to the earlier token.
    Source: arXiv:2601.19686, section 3.2. Differs: the release pools a group and keeps ties.
    """
    # 0.07 * 100 is 7.000000000000001 in floating point; ceil must still say 7, and any ratio above 0 keep a token.
    counts = (keep_ratio * valid.sum(-1, keepdim=True).double()).round(decimals=6).ceil()
    return masked_top(scores, valid, counts.clamp(min=int(keep_ratio > 0)))


@torch.no_grad()
def ktr_token_weights(
    visual_delta: Tensor | None,
    temporal_delta: Tensor | None,
    entropies: Tensor,
    completion_mask: Tensor,
    *,
    visual_keep_ratio: float = 0.2,
    temporal_keep_ratio: float = 0.2,
    entropy_keep_ratio: float = 0.2,
    preset: str = "paper",
    weighting: str = "hard",
) -> TokenWeights:
    """Token weights of Video-KTR: 1 for key tokens (the union of each signal's top share), 0 for the others.

    key[b,t] = valid[b,t] and any over signals s of (score_s[b,t] is in the top r_s share)
    "paper"    scores |dv|, |dt|, H; the ceil(r n) best of each completion, ties to the earlier token
    "release"  scores dv, dt, H (only drops in confidence count); score >= the (1-r) quantile, linear between
               neighbours, of all valid tokens given, which are one group; ties stay, a completion may keep nothing

    Soft weightings (the paper's ablation, whose formulas we have not seen; these are ours) let credit fall off below
    the cut. With c the lowest score kept and [lo, hi] the range of valid scores, of the completion or release's group,
        g[b,t] = min over signals of max(0, c - score) / (hi - lo)               0 for key tokens, at most 1
        "linear" 1 - g     "exponential" e = exp(-g / 0.1)     "sigmoid" 2 / (1 + exp(g / 0.1))
        "softmax" K e / sum_j e_j over the completion, K its number of key tokens: the hard mask's total, spread out
    All lie in [0, 1], and as a ratio goes to 1 the cut sinks to the lowest score and every weight to 1.

    A ratio of 0, or None for a signal (an image has no temporal signal), disables the signal. A ratio of 1 keeps every
    token, even for None, and equals GRPO. If all signals are disabled, all weights are 0.

    Args:
        visual_delta: (B,T) log p(o_t | video) - log p(o_t | no video), nats, anything on padding, or None.
        temporal_delta: (B,T) log p(o_t | frames in order) - log p(o_t | frames shuffled), likewise.
        entropies: (B,T) entropy of the distribution with media, nats, anything on padding.
        completion_mask: (B,T) bool, True on completion tokens, the end-of-sequence token included.
        visual_keep_ratio, temporal_keep_ratio, entropy_keep_ratio: share r of tokens each signal keeps, in [0, 1].
        preset: "paper" or "release".
        weighting: "hard", "softmax", "sigmoid", "linear" or "exponential".
    Returns: weights (B,T) float32 in [0, 1], detached, 0 on padding. Metrics, shares of valid tokens unless said:
        ktr/kept_frac, ktr/visual_frac, ktr/temporal_frac, ktr/entropy_frac (each signal's keys), ktr/overlap_frac (keys
        of two signals or more), ktr/weight_mean (mean weight), ktr/empty_frac (completions that keep nothing).
    Errors: ValueError for wrong shapes or settings, or a valid signal that is not finite.
    Source: arXiv:2601.19686, section 3.2; release zywang0104/Video-KTR 0162d46 behind `preset="release"`. Differs: the
        release multiplies 1-r and n-1 in float32. Where the product is an integer k it may come out just above, and the
        threshold then lies above the k-th score, whose token is lost (r = 0.4, n = 26; never at r = 0.2); here it stays.
    """
    check_float("entropies", entropies, "BT")
    valid = check_mask("completion_mask", completion_mask, "BT", like=entropies.shape)
    check_choice("preset", preset, ("paper", "release"))
    check_choice("weighting", weighting, WEIGHTINGS)
    signals = {
        "visual": (visual_delta, visual_keep_ratio),
        "temporal": (temporal_delta, temporal_keep_ratio),
        "entropy": (entropies, entropy_keep_ratio),
    }
    keys, gaps = {}, {}
    for name, (scores, keep_ratio) in signals.items():
        argument = "entropies" if name == "entropy" else f"{name}_delta"
        check_range(f"{name}_keep_ratio", keep_ratio, 0.0, 1.0)
        if scores is not None:
            check_float(argument, scores, "BT", like=entropies.shape)
        if keep_ratio == 1:
            keys[name], gaps[name] = valid, torch.zeros_like(entropies, dtype=working_dtype(entropies))
        elif keep_ratio == 0 or scores is None:
            keys[name] = torch.zeros_like(valid)
            gaps[name] = torch.full_like(entropies, math.inf, dtype=working_dtype(entropies))
        else:
            check_finite(argument, scores, valid)
            scores = scores.to(working_dtype(scores))
            scores = scores.abs() if preset == "paper" and name != "entropy" else scores
            keys[name], gaps[name] = _select(scores, valid, keep_ratio, pooled=preset == "release")

    hits = torch.stack(list(keys.values())).sum(0)
    kept = hits > 0
    gap = torch.stack(list(gaps.values())).amin(0)
    weights = torch.where(valid, _soften(gap, kept, valid, weighting), 0.0).float()

    some = valid.any(-1)
    metrics = {f"ktr/{name}_frac": masked_mean(key.float(), valid) for name, key in keys.items()}
    metrics |= {
        "ktr/kept_frac": masked_mean(kept.float(), valid),
        "ktr/overlap_frac": masked_mean((hits > 1).float(), valid),
        "ktr/weight_mean": masked_mean(weights, valid),
        "ktr/empty_frac": masked_mean((some & ~kept.any(-1)).float(), some),
    }
    return TokenWeights(weights, metrics)


def _select(scores: Tensor, valid: Tensor, keep_ratio: float, pooled: bool) -> tuple[Tensor, Tensor]:
    """One signal's key tokens (B,T), and how far below its cut each token lies, in units of the range of scores."""
    shape = scores.shape
    if pooled:
        scores, valid = scores.reshape(1, -1), valid.reshape(1, -1)
        kept = valid & (scores >= masked_quantile(scores, valid, 1 - keep_ratio))
    else:
        kept = key_token_mask(scores, valid, keep_ratio)
    low, high = masked_min_max(scores, valid)
    cut, _ = masked_min_max(scores, kept)
    spread = high - low
    gap = (cut - scores).clamp(min=0) / torch.where(spread > 0, spread, 1.0)
    return kept.view(shape), torch.where(valid, gap, 0.0).view(shape)


def _soften(gap: Tensor, kept: Tensor, valid: Tensor, weighting: str) -> Tensor:
    """The weight of a token `gap` below the cut; see `ktr_token_weights`."""
    if weighting == "hard":
        return kept.to(gap.dtype)
    if weighting == "linear":
        return (1 - gap).clamp(min=0)
    if weighting == "sigmoid":
        return 2 * torch.sigmoid(-gap / SOFT_WIDTH)
    decay = torch.exp(-gap / SOFT_WIDTH)
    if weighting == "exponential":
        return decay
    total = masked_sum(decay, valid, dim=-1, keepdim=True)
    return kept.sum(-1, keepdim=True) * decay / torch.where(total > 0, total, 1.0)
