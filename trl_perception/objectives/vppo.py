"""VPPO: only the tokens that depend most on the image learn, and completions that depend on it learn more."""

import torch
from torch import Tensor

from .checks import check_divisor, check_finite, check_float, check_mask, check_range, working_dtype
from .masked import masked_mean, masked_min_max, masked_sum
from .results import Penalty, TokenWeights
from .video_ktr import key_token_mask


@torch.no_grad()
def vppo_token_weights(dependency: Tensor, completion_mask: Tensor, *, keep_ratio: float = 0.4) -> TokenWeights:
    """Token weights of VPPO: 1 on the ceil(keep_ratio * n) tokens of a completion with the largest S, else 0.

    Args:
        dependency: (B,T) S of `visual_dependency`, nats, anything on padding.
        completion_mask: (B,T) bool, True on completion tokens.
        keep_ratio: in [0, 1]; 1 keeps every token (GRPO). Ties go to the earlier token.
    Returns: weights (B,T) float32, 0 or 1, detached, 0 on padding. Metrics over valid tokens: vppo/dependency_mean (nats),
        vppo/kept_frac.
    Errors: ValueError for wrong shapes, a ratio out of range, or a valid S that is not finite.
    Source: arXiv:2510.09285, Eq. 5; release huaixuheqing/VPPO-RL a23c54b.
    """
    check_float("dependency", dependency, "BT")
    valid = check_mask("completion_mask", completion_mask, "BT", like=dependency.shape)
    check_range("keep_ratio", keep_ratio, 0.0, 1.0)
    check_finite("dependency", dependency, valid)
    weights = key_token_mask(dependency, valid, keep_ratio).float()
    metrics = {"dependency_mean": dependency.to(working_dtype(dependency)), "kept_frac": weights}
    return TokenWeights(weights, {f"vppo/{name}": masked_mean(values, valid) for name, values in metrics.items()})


@torch.no_grad()
def mean_dependency(dependency: Tensor, completion_mask: Tensor) -> Tensor:
    """Visual dependency of completions: s_i = mean over the valid tokens of S.

    Args:
        dependency: (B,T) S of `visual_dependency`, nats, anything on padding. completion_mask: (B,T) bool.
    Returns: (B,), NaN for a completion without a valid token.
    Errors: ValueError for wrong shapes.
    Source: arXiv:2510.09285, Eq. 4.
    """
    check_float("dependency", dependency, "BT")
    valid = check_mask("completion_mask", completion_mask, "BT", like=dependency.shape)
    means = masked_mean(dependency.to(working_dtype(dependency)), valid, dim=-1)
    return torch.where(valid.any(-1), means, torch.nan)


@torch.no_grad()
def vppo_sequence_weights(scores: Tensor, *, floor: float = 0.9) -> Tensor:
    """Factors of VPPO for whole completions, of mean 1.

    n_i = (s_i - min s) / (max s - min s),  f_i = floor + n_i (1 - floor) / mean(n);  f_i = 1 where max s = min s

    Args:
        scores: (B,) s of [`mean_dependency`], of the completions that are compared: a group, or a rollout. NaN takes no part
            and gets 1.
        floor: the least factor, in [0, 1]. 1 makes every factor 1.
    Returns: (B,) float32, detached.
    Errors: ValueError for a wrong shape, an infinite score, or a floor out of range.
    Source: arXiv:2510.09285, Eq. 4; release huaixuheqing/VPPO-RL a23c54b. Differs: the release takes min and max over a
        process's mini-batch and mean(n) over a micro-batch, so that its factors depend on how a step is divided.
    """
    check_float("scores", scores, "B")
    check_range("floor", floor, 0.0, 1.0)
    valid = ~scores.isnan()
    check_finite("scores", scores, valid)
    known = scores.to(working_dtype(scores))
    low, high = masked_min_max(known, valid)
    share = (known - low) / torch.where(high > low, high - low, 1.0)
    factors = floor + share * (1 - floor) / torch.where(high > low, masked_mean(share, valid), 1.0)
    return torch.where(valid & (high > low), factors, 1.0).float()


def entropy_penalty(
    logps: Tensor, completion_mask: Tensor, *, weight: float = 0.06, num_tokens: float | None = None
) -> Penalty:
    """VPPO's entropy penalty: loss = weight * H,  H = -1/N sum over the valid tokens of log p of the sampled token.

    Args:
        logps: (B,T) nats, with gradient, anything on padding.
        completion_mask: (B,T) bool, True on completion tokens.
        weight: >= 0. num_tokens: N > 0; None counts the valid tokens given.
    Returns: loss, scalar with gradient. Metrics: vppo/entropy (H, nats).
    Errors: ValueError for wrong shapes, a negative weight or a number that is not above 0.
    Source: release huaixuheqing/VPPO-RL a23c54b, `entropy_penalty_coef`.
    """
    check_float("logps", logps, "BT")
    valid = check_mask("completion_mask", completion_mask, "BT", like=logps.shape)
    check_range("weight", weight, 0.0)
    check_divisor("num_tokens", num_tokens)
    count = valid.sum().clamp(min=1) if num_tokens is None else num_tokens
    entropy = -masked_sum(logps.to(working_dtype(logps)), valid) / count
    return Penalty(weight * entropy, {"vppo/entropy": entropy.detach()})
