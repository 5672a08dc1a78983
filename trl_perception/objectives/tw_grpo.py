"""TW-GRPO: tokens weigh more at the positions where the completions of a group disagree about what comes next."""

from collections.abc import Callable

import torch
from torch import Tensor

from .checks import check_choice, check_mask, check_range
from .masked import masked_mean, masked_min_max
from .rank_divergence import rank_divergences
from .results import TokenWeights

PADDING = {"skip": "skip", "release": "uniform"}  # -> what rank_divergences puts where a completion has ended


@torch.no_grad()
def tw_token_weights(
    completion_mask: Tensor,
    log_probs_at: Callable[[Tensor, Tensor], Tensor],
    *,
    alpha: float = 1.7,
    padding: str = "skip",
) -> TokenWeights:
    """Token weights of TW-GRPO, the same for all completions of a group at a position.

    m_t(v) = mean_i log p_i,t(v)
    D_t    = mean_i sum_v [exp(c) - c - 1],  c = clamp(m_t(v) - log p_i,t(v), -11, 11)
    w_t    = 1 + (alpha - 1) * (D_t - min D) / (max D - min D)

    Means are over the completions that reach position t. A position that fewer than two reach has weight 1 and takes no part
    in min and max; where max D = min D every weight is 1.

    Args:
        completion_mask: (G,T) bool, True on completion tokens.
        log_probs_at: (g_index (M,), t_index (M,)) -> (M,N) next-token log-probabilities, -inf allowed; it is called for a
            few positions at a time, so that memory does not grow with G T N.
        alpha: the largest weight, >= 0. 1 is GRPO.
        padding: "skip" compares the completions that reach a position; "release" puts a uniform distribution where one has
            ended, and compares all.
    Returns: weights (G,T) float32, >= 0, detached, 0 on padding. Metrics: tw_grpo/divergence_mean (nats, over the positions
        compared), tw_grpo/compared_frac (share of the group's positions), tw_grpo/weight_mean, tw_grpo/weight_max.
    Errors: ValueError for wrong shapes or settings, or log-probabilities whose divergence is not finite.
    Source: arXiv:2505.24718; release longmalongma/TW-GRPO aa529ff behind `padding="release"`.
    """
    valid = check_mask("completion_mask", completion_mask, "GT")
    check_range("alpha", alpha, 0.0)
    check_choice("padding", padding, tuple(PADDING))
    width = valid.size(1)
    positions = torch.arange(width, device=valid.device).expand_as(valid)
    found, compared = rank_divergences(valid[None], positions[None], log_probs_at, "release", PADDING[padding])
    found, compared = found[:, :width], compared[:, :width]
    low, high = masked_min_max(found, compared)
    spread = high - low
    share = torch.where(compared, (found - low) / torch.where(spread > 0, spread, 1.0), 0.0)
    of_positions = torch.ones(width, device=valid.device)
    of_positions[: share.size(1)] = (1 + (alpha - 1) * share[0]).float()
    weights = torch.where(valid, of_positions, 0.0)
    metrics = {
        "tw_grpo/divergence_mean": masked_mean(found, compared),
        "tw_grpo/compared_frac": compared.sum() / valid.any(0).sum().clamp(min=1),
        "tw_grpo/weight_mean": masked_mean(weights, valid),
        "tw_grpo/weight_max": weights.max() if weights.numel() else weights.sum(),
    }
    return TokenWeights(weights, metrics)
