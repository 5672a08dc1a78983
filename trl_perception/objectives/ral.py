"""RAL: a policy gradient on attention. Where the model looked in good completions it should look again."""

import torch
from torch import Tensor

from .checks import check_divisor, check_float, check_mask, check_range, check_shape, working_dtype
from .divergences import entropy, masked_jensen_shannon
from .masked import masked_mean, masked_sum
from .results import Penalty


def attention_policy(rows: Tensor, key_mask: Tensor) -> Tensor:
    """Normalise attention rows to distributions over the allowed keys.

    p[b,t,i] = rows[b,t,i] / sum_{j allowed} rows[b,t,j]   for allowed keys i, 0 for the others

    In the paper the allowed keys are all earlier positions without the token itself. Average the heads first:
    renormalising before that mean gives another distribution.

    Args:
        rows: (B,T,S) softmax weights, mean over heads, >= 0; anything on keys that are not allowed and on padding.
        key_mask: (B,T,S) bool, True on allowed keys.
    Returns: (B,T,S) float32 (float64 where rows is), rows summing to 1, with gradient through `rows`; all zeros, with
        no gradient, where no allowed key has mass.
    Errors: ValueError for wrong shapes.
    Source: arXiv:2602.04884, Eq. 2.
    """
    check_float("rows", rows, "BTS")
    allowed = check_mask("key_mask", key_mask, "BTS", like=rows.shape)
    kept = torch.where(allowed, rows.to(working_dtype(rows)), 0.0)
    total = kept.sum(-1, keepdim=True)
    empty = total < torch.finfo(total.dtype).tiny
    return torch.where(empty, 0.0, kept / torch.where(empty, 1.0, total))


def ral_penalty(
    policy: Tensor,
    old_policy: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    *,
    weight: float = 1.0,
    num_tokens: float | None = None,
) -> Penalty:
    """RAL's loss term: keep the attention of completions with positive advantage, change that of those with negative.

    loss = weight / N * sum over the valid tokens (b,t) of A[b] * JSD(p[b,t] || p_old[b,t])

    N is the number of valid tokens, so that this is their mean. Of a micro-batch, take N as the mean number of valid tokens of
    the step's micro-batches on all processes: the mean of these losses is then the mean over the tokens of the step.

    The advantage is one number per completion, without clipping and importance ratio. The gradient runs through p alone,
    A/2 ln(2p / (p + p_old)): exactly 0 while p == p_old, before the first update on a rollout.

    Args:
        policy: (B,T,S) attention policy now, rows summing to 1 (see `attention_policy`), anything on padding.
        old_policy: (B,T,S) the same at rollout time, detached here; a row of zeros in both adds zero.
        advantages: (B,) group advantage of each completion, detached here; anything for a completion without tokens.
        completion_mask: (B,T) bool, True on completion tokens.
        weight: lambda >= 0; 0 equals GRPO.
        num_tokens: N > 0; None counts the valid tokens given.
    Returns: loss, scalar with gradient (a graph-connected zero where the mask is empty). Metrics in nats: ral/jsd and
        ral/attention_entropy, sums over valid tokens / N; ral/jsd_positive (A > 0) and ral/jsd_negative (A < 0), means over
        those of the batch, 0 where there are none.
    Errors: ValueError for wrong shapes, a negative weight or `num_tokens` that is not above 0.
    Source: arXiv:2602.04884, Eq. 3 and 4.
    """
    check_float("policy", policy, "BTS")
    check_float("old_policy", old_policy, "BTS", like=policy.shape)
    valid = check_mask("completion_mask", completion_mask, "BT", like=policy.shape[:2])
    check_shape("advantages", advantages, "B", like=policy.shape[:1])
    check_range("weight", weight, 0.0)
    check_divisor("num_tokens", num_tokens)

    jsd = masked_jensen_shannon(policy, old_policy.detach(), valid)
    advantage = advantages.detach().to(jsd.dtype).unsqueeze(-1)
    count = valid.sum().clamp(min=1) if num_tokens is None else num_tokens
    loss = weight * masked_sum(advantage * jsd, valid) / count

    with torch.no_grad():
        metrics = {
            "ral/jsd": masked_sum(jsd, valid) / count,
            "ral/jsd_positive": masked_mean(jsd, valid & (advantage > 0)),
            "ral/jsd_negative": masked_mean(jsd, valid & (advantage < 0)),
            "ral/attention_entropy": masked_sum(entropy(policy.to(jsd.dtype)), valid) / count,
        }
    return Penalty(loss, metrics)
