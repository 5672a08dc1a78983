"""The comparison of a group's next-token distributions in APPO and TW-GRPO, a few at a time."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .checks import check_float, working_dtype
from .divergences import mean_kl_to_mixture
from .masked import masked_mean

ROWS_AT_ONCE = 64  # distributions asked for, and compared, together: 39 MB of float32 at N = 152k
RELEASE_LIMIT = 11.0  # nats
LOG_ZERO = -1e4  # stands for log 0 where log-probabilities are averaged: finite, far below any real one


def rank_divergences(
    perception: Tensor,
    rank: Tensor,
    log_probs_at: Callable[[Tensor, Tensor], Tensor],
    divergence: str,
    missing_ranks: str = "skip",
) -> tuple[Tensor, Tensor]:
    """Compare the completions of a group, rank by rank, on each frame.

    D[k,n] = divergence of p[i] over the completions i that have a rank n on frame k; 0 where fewer than two do

    Args:
        perception: (K,G,T) bool, the perception tokens of each frame.
        rank: (K,G,T) int, the n of each perception token, by position; anything elsewhere.
        log_probs_at: (g_index (M,), t_index (M,)) -> (M,N) log-probabilities, see `appo_token_weights`.
        divergence: "kl" (mean KL to the mixture) or "release".
        missing_ranks: "skip" compares the completions that have the rank; "uniform" gives the others 1/N and compares all.
    Returns: D (K,R), nats, and compared (K,R) bool, at least two completions there ("uniform": one); R is the largest rank + 1.
    Errors: ValueError where log_probs_at returns another shape, or rows whose divergence is not finite.
    """
    frames, group_size, length = perception.shape
    k, i, j = perception.nonzero(as_tuple=True)
    ranks = int(rank[k, i, j].max()) + 1 if len(k) else 1
    tokens = torch.full((ranks, frames, group_size), -1, device=perception.device)  # i * T + j, -1: no such rank
    tokens[rank[k, i, j], k, i] = i * length + j
    compared = (tokens >= 0).sum(-1) >= (2 if missing_ranks == "skip" else 1)
    disagreement = torch.zeros(compared.shape, device=perception.device)
    if compared.any():  # frames that hold the same tokens are compared once
        sets, place = tokens[compared].unique(dim=0, return_inverse=True)
        values = _divergences(sets, length, log_probs_at, divergence, missing_ranks)
        disagreement = disagreement.to(values.dtype)
        disagreement[compared] = values[place]
    return disagreement.T, compared.T


def _divergences(
    sets: Tensor, length: int, log_probs_at: Callable[[Tensor, Tensor], Tensor], divergence: str, missing_ranks: str
) -> Tensor:
    """D (M,) of M sets (M,G) of tokens i * length + j, -1 where a completion has no such rank.

    The distributions of a few sets are asked for at a time, and again where later sets hold the same token.
    """
    compare, uniform = mean_kl_to_mixture if divergence == "kl" else _release_divergence, missing_ranks == "uniform"
    values = []
    for tokens in sets.split(max(1, ROWS_AT_ONCE // sets.size(1))):
        present = tokens >= 0
        blocks = []
        for chunk in tokens[present].split(ROWS_AT_ONCE):
            block = log_probs_at(chunk // length, chunk % length)
            check_float("what log_probs_at returned", block, "MN", like=(len(chunk), block.shape[-1]))
            blocks.append(block.to(working_dtype(block)))
        asked = torch.cat(blocks)
        rows = asked.new_full((*tokens.shape, asked.size(-1)), -math.log(asked.size(-1)))
        rows[present] = asked
        values.append(compare(rows, torch.ones_like(present) if uniform else present))
    result = torch.cat(values)
    if not torch.isfinite(result).all():
        raise ValueError(
            "log_probs_at returned rows whose divergence is not finite; wanted log-probabilities (-inf allowed, "
            "NaN and +inf not). Apply log_softmax in float32 to finite logits."
        )
    return result


def _release_divergence(log_probs: Tensor, valid: Tensor) -> Tensor:
    """The release's D = mean_i sum_v (exp(c) - c - 1), c = clamp(mean_i ln p[i] - ln p[i], -11, 11).

    Args: log_probs (...,G,N), -inf allowed (it takes the limit of ever smaller probabilities); valid (...,G) bool.
    Returns: (...).
    """
    log_probs = log_probs.clamp(min=LOG_ZERO)
    mean = masked_mean(log_probs, valid.unsqueeze(-1), dim=-2, keepdim=True)
    c = (mean - log_probs).clamp(-RELEASE_LIMIT, RELEASE_LIMIT)
    return masked_mean((torch.expm1(c) - c).sum(-1), valid, dim=-1)
