"""APPO's comparison of a group's next-token distributions, each asked for once and none kept longer than needed."""

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
    Returns: D (K,R), nats, and compared (K,R) bool, at least two completions there ("uniform": one); R is the most ranks of any frame.
    Errors: ValueError where log_probs_at returns another shape, or rows whose divergence is not finite.
    """
    frames, group_size, length = perception.shape
    ranks = max(1, int(perception.sum(-1).max())) if perception.numel() else 1
    k, i, j = perception.nonzero(as_tuple=True)
    tokens = torch.full((ranks, frames, group_size), -1, device=perception.device)  # i * T + j, -1: no such rank
    tokens[rank[k, i, j], k, i] = i * length + j
    compared = (tokens >= 0).sum(-1) >= (2 if missing_ranks == "skip" else 1)
    disagreement = torch.zeros(compared.shape, device=perception.device)
    if compared.any():
        # Frames that hold the same tokens are compared once. Rank by rank, a token's uses lie close together.
        sets = [tuple(row) for row in tokens[compared].tolist()]
        place = {row: index for index, row in enumerate(dict.fromkeys(sets))}
        values = _stream_divergences(list(place), length, log_probs_at, divergence, missing_ranks, perception.device)
        disagreement = disagreement.to(values.dtype)
        disagreement[compared] = values[[place[row] for row in sets]]
    return disagreement.T, compared.T


def _stream_divergences(
    sets: list[tuple[int, ...]],
    length: int,
    log_probs_at: Callable[[Tensor, Tensor], Tensor],
    divergence: str,
    missing_ranks: str,
    device: torch.device,
) -> Tensor:
    """D of each set of tokens i * length + j (-1 absent), asking for each distribution once.

    A distribution is let go after the last set that compares it, so what is held follows how far apart the frames rank
    the same token, not how many tokens there are.
    """
    compare = mean_kl_to_mixture if divergence == "kl" else _release_divergence
    last_use = {token: index for index, members in enumerate(sets) for token in members}
    step = max(1, ROWS_AT_ONCE // len(sets[0]))
    held: Tensor | None = None  # one distribution a row
    row_of: dict[int, int] = {-1: 0}
    values = []
    for start in range(0, len(sets), step):
        batch = sets[start : start + step]
        kept = [token for token in row_of if token >= 0 and last_use[token] >= start]
        new = list(dict.fromkeys(token for members in batch for token in members if token not in row_of))
        blocks = [held[[row_of[token] for token in kept]]] if kept else []
        for chunk in torch.tensor(new, dtype=torch.long, device=device).split(ROWS_AT_ONCE) if new else ():
            block = log_probs_at(chunk // length, chunk % length)
            check_float("what log_probs_at returned", block, "MN", like=(len(chunk), block.shape[-1]))
            blocks.append(block)
        held = torch.cat(blocks)
        row_of = {-1: 0} | {token: row for row, token in enumerate(kept + new)}
        tokens = torch.tensor(batch, device=device)
        rows = held[torch.tensor([[row_of[token] for token in members] for members in batch], device=device)]
        rows, present = rows.to(working_dtype(rows)), tokens >= 0
        if missing_ranks == "uniform":
            rows = torch.where(present.unsqueeze(-1), rows, -math.log(rows.shape[-1]))
            present = torch.ones_like(present)
        values.append(compare(rows, present))
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
