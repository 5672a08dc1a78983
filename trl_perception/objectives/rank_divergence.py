"""The comparison of a group's next-token distributions in APPO and TW-GRPO, a few at a time."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..transfer import to_device
from .checks import check_float, refuse, working_dtype
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
    (frames, group_size, length), device = perception.shape, perception.device
    held = torch.where(perception, rank, -1).cpu()  # which tokens meet is found on the host: one wait a group
    k, i, j = (held >= 0).nonzero(as_tuple=True)
    ranks = int(held.max()) + 1 if len(k) else 1
    tokens = torch.full((ranks, frames, group_size), -1)  # i * T + j, -1: no such rank
    tokens[held[k, i, j], k, i] = i * length + j
    compared = (tokens >= 0).sum(-1) >= (2 if missing_ranks == "skip" else 1)
    disagreement = torch.zeros(compared.shape, device=device)
    if compared.any():  # frames that hold the same tokens are compared once
        sets, place = tokens[compared].unique(dim=0, return_inverse=True)
        values = _divergences(sets, length, log_probs_at, divergence, missing_ranks, device)
        where = [to_device(index, device) for index in compared.nonzero(as_tuple=True)]
        disagreement = disagreement.to(values.dtype).index_put(where, values[to_device(place, device)])
    return disagreement.T, to_device(compared.T, device)


def _divergences(
    sets: Tensor,
    length: int,
    log_probs_at: Callable[[Tensor, Tensor], Tensor],
    divergence: str,
    missing_ranks: str,
    device: torch.device,
) -> Tensor:
    """D (M,) on the device of M sets (M,G) on the host of tokens i * length + j, -1 where a completion has no such rank.

    The distributions of a few sets are asked for at a time, and again where later sets hold the same token.
    """
    compare, uniform = mean_kl_to_mixture if divergence == "kl" else _release_divergence, missing_ranks == "uniform"
    at_once = max(1, ROWS_AT_ONCE // sets.size(1))
    there = [part >= 0 for part in sets.split(at_once)]
    counts = [int(part.sum()) for part in there]
    asked_for = to_device(sets[sets >= 0], device).split(counts)
    places = to_device(torch.cat([part.flatten().nonzero()[:, 0] for part in there]), device).split(counts)
    values = []
    for tokens, place, present in zip(asked_for, places, to_device(sets >= 0, device).split(at_once), strict=True):
        blocks = []
        for chunk in tokens.split(ROWS_AT_ONCE):
            block = log_probs_at(chunk // length, chunk % length)
            check_float("what log_probs_at returned", block, "MN", like=(len(chunk), block.shape[-1]))
            blocks.append(block.to(working_dtype(block)))
        asked = torch.cat(blocks)
        rows = asked.new_full((present.numel(), asked.size(-1)), -math.log(asked.size(-1)))
        rows[place] = asked
        values.append(compare(rows.unflatten(0, present.shape), torch.ones_like(present) if uniform else present))
    result = torch.cat(values)
    refuse(
        ~torch.isfinite(result),
        lambda: ValueError(
            "log_probs_at returned rows whose divergence is not finite; wanted log-probabilities (-inf allowed, "
            "NaN and +inf not). Apply log_softmax in float32 to finite logits."
        ),
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
