"""PGPO: tokens that depend on the image take a larger share of the completion's credit."""

import torch
from torch import Tensor

from .checks import check_choice, check_finite, check_float, check_mask, check_range, refuse, working_dtype
from .divergences import k3
from .masked import masked_mean, masked_min_max, masked_quantile, masked_sum
from .results import TokenWeights

LOG_RATIO_LIMIT = 20.0  # nats
NEGATIVE_TOLERANCE = 1e-3  # nats; an exact KL can round to slightly below 0


@torch.no_grad()
def visual_dependency(
    sighted_logps: Tensor, blind_logps: Tensor, *, clamp: tuple[float, float] | None = (0.0, 10.0)
) -> Tensor:
    """Visual dependency of sampled tokens: a one-sample estimate of KL(with media || without media).

    S = (r - 1) - ln r,  r = pi_blind(o_t) / pi_sighted(o_t)

    It is asymmetric: a token that is 5 nats more likely with the image has S = 4, one that is 5 nats less likely S = 142.

    Args:
        sighted_logps: (B,T) log-probability of each sampled token with the image, nats, anything on padding.
        blind_logps: (B,T) the same with the prompt's visual tokens masked; same code path, dtype and temperature.
        clamp: bounds of S in nats; ln r is then clamped to +-20 as well. None is the literal paper: no bound on either.
    Returns: (B,T) nats, >= 0, detached; meaningless on padding (NaN in, NaN out).
    Errors: ValueError for wrong shapes or bounds.
    Source: arXiv:2604.01840, Eq. 1, Appendix A.1. Differs: clamped by default, because one outlier would dominate
        the min-max of `pgpo_token_weights`.
    """
    check_float("sighted_logps", sighted_logps, "BT")
    check_float("blind_logps", blind_logps, "BT", like=sighted_logps.shape)
    dtype = working_dtype(sighted_logps, blind_logps)
    log_ratio = blind_logps.to(dtype) - sighted_logps.to(dtype)
    if clamp is None:
        return k3(log_ratio)
    low, high = clamp
    if not 0 <= low <= high:
        raise ValueError(f"clamp is {clamp}; wanted 0 <= low <= high in nats, or None for no bound.")
    return k3(log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)).clamp(low, high)


@torch.no_grad()
def pgpo_token_weights(
    dependency: Tensor,
    completion_mask: Tensor,
    *,
    threshold: float = 0.4,
    visual_boost: float = 2.0,
    eps: float = 1e-8,
    threshold_mode: str = "absolute",
    weight_floor: float = 0.0,
    conserve_mass: bool = True,
    max_weight: float | None = None,
) -> TokenWeights:
    """Token weights of PGPO: below 1 under a threshold of visual dependency, above 1 over it, with constant sum.

    S'_t = ln(1 + S_t),   I_t = (S'_t - min S') / (max S' - min S' + eps)          over the n valid tokens
    w(I) = I / (tau + eps)  if I < tau,   else   1 + beta (I - tau) / (1 - tau + eps)
    w~_t = w(I_t) * n / sum_j w(I_j)                                               so that sum_t w~_t = n

    A completion gets all ones if max S' - min S' <= eps (its tokens do not differ: a single token, or a prompt without an
    image, where S is 0), and if sum w <= eps.
    Neutral: `visual_boost=0, threshold=0, conserve_mass=False` gives all ones.

    Args:
        dependency: (B,T) S, nats, >= 0, anything on padding.
        completion_mask: (B,T) bool, True on completion tokens.
        threshold: tau in [0, 1]; a value of I, or with `threshold_mode="quantile"` a quantile of the completion's I.
        visual_boost: beta >= 0, the extra weight of the most dependent token before conservation.
        eps: keeps the divisions finite; also the spread below which tokens count as equal.
        weight_floor: least w(I), before conservation: after it the least weight is the floor times n / sum w.
        conserve_mass: False leaves w(I) as it is.
        max_weight: None, or a cap on w~, which is then scaled back to sum n once. What holds afterwards: the sum is n
            and the order is that of S (capped tokens tie), but the largest weight is
            max_weight * n / sum_j min(w~_j, max_weight), above the cap by the share that was cut off. With
            `conserve_mass=False` nothing is scaled and the cap is exact.
    Returns: weights (B,T) float32, >= 0, detached, 0 on padding. Metrics: pgpo/dependency_mean (nats),
        pgpo/amplified_frac (share of tokens with I >= tau), pgpo/weight_max, pgpo/mass_scale (mean over completions of
        n / sum w), pgpo/uniform_frac (share of completions that got all ones).
    Errors: ValueError for wrong shapes or settings, for a valid S that is not finite or is negative beyond rounding.
    Source: arXiv:2604.01840, Eq. 4 to 8. Differs: quantile, floor, cap and free mass are ours, off by default.
    """
    check_float("dependency", dependency, "BT")
    valid = check_mask("completion_mask", completion_mask, "BT", like=dependency.shape)
    check_choice("threshold_mode", threshold_mode, ("absolute", "quantile"))
    check_range("threshold", threshold, 0.0, 1.0)
    check_range("visual_boost", visual_boost, 0.0)
    check_range("weight_floor", weight_floor, 0.0)
    if not eps > 0:
        raise ValueError(f"eps is {eps}; wanted a number > 0.")
    if max_weight is not None and not max_weight > 0:
        raise ValueError(f"max_weight is {max_weight}; wanted a number > 0, or None for no cap.")
    check_finite("dependency", dependency, valid)
    dependency = torch.where(valid, dependency.to(working_dtype(dependency)), 0.0)
    refuse(
        dependency < -NEGATIVE_TOLERANCE,
        lambda: ValueError(
            f"dependency goes down to {dependency.min().item():.3g}; wanted a divergence, >= 0. "
            "Pass visual_dependency(sighted_logps, blind_logps), not the difference of log-probabilities."
        ),
    )

    count = valid.sum(-1, keepdim=True)
    damped = torch.log1p(dependency.clamp(min=0))
    low, high = masked_min_max(damped, valid)
    importance = (damped - low) / (high - low + eps)
    tau = masked_quantile(importance, valid, threshold) if threshold_mode == "quantile" else threshold
    suppressed = importance / (tau + eps)
    amplified = 1 + visual_boost * (importance - tau) / (1 - tau + eps)
    weights = torch.where(importance < tau, suppressed, amplified).clamp(min=weight_floor)

    total = masked_sum(weights, valid, dim=-1, keepdim=True)
    uniform = (high - low <= eps) | (total <= eps)
    scale = torch.where(uniform, 1.0, count / total) if conserve_mass else torch.ones_like(total)
    weights = weights * scale
    if max_weight is not None:
        weights = weights.clamp(max=max_weight)
        if conserve_mass:
            weights = weights * (count / masked_sum(weights, valid, dim=-1, keepdim=True).clamp(min=eps))
    weights = torch.where(uniform, 1.0, weights)
    weights = torch.where(valid, weights, 0.0).float()

    some = count > 0
    metrics = {
        "pgpo/dependency_mean": masked_mean(dependency, valid),
        "pgpo/amplified_frac": masked_mean(((importance >= tau) & ~uniform).float(), valid),
        "pgpo/weight_max": weights.max() if weights.numel() else weights.sum(),
        "pgpo/mass_scale": masked_mean(scale, some),
        "pgpo/uniform_frac": masked_mean(uniform.float(), some),
    }
    return TokenWeights(weights, metrics)
