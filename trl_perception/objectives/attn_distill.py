"""On-policy attention distillation: the student looks where the teacher looks, on the student's own rollouts."""

import torch
from torch import Tensor

from .checks import check_choice, check_divisor, check_float, check_mask, check_range
from .divergences import entropy, masked_jensen_shannon
from .masked import masked_sum
from .results import Penalty


def attn_distill_penalty(
    policy: Tensor,
    teacher_policy: Tensor,
    completion_mask: Tensor,
    *,
    weight: float = 0.5,
    reduction: str = "mean",
    num_tokens: float | None = None,
    num_completions: float | None = None,
) -> Penalty:
    """Attention term of distillation: mean JSD between the student's and the teacher's attention, without advantages.

    loss = weight / N * sum over the valid tokens (b,t) of JSD(p_student[b,t] || p_teacher[b,t])

    N is `num_tokens` for "mean" and `num_completions` for "sum", which averages the completions' sums. Of a micro-batch, take
    each as the mean over the step's micro-batches on all processes: the mean of these losses is then the mean over the
    tokens, or completions, of the step.

    Args:
        policy: (B,T,S) student's attention policy, rows summing to 1 (see `attention_policy`), anything on padding.
        teacher_policy: (B,T,S) the teacher's over the same keys, detached here.
        completion_mask: (B,T) bool, True on completion tokens.
        weight: gamma >= 0; 0 disables the term.
        reduction: "mean" over valid tokens, or "sum" over those of a completion.
        num_tokens: > 0; None counts the valid tokens given.
        num_completions: > 0; None is 1, the sum over all that is given.
    Returns: loss, scalar with gradient (a graph-connected zero where the mask is empty). Metrics, sums over valid tokens
        / num_tokens in nats: attn_distill/jsd, attn_distill/attention_entropy (the student's),
        attn_distill/teacher_entropy.
    Errors: ValueError for wrong shapes, a negative weight, an unknown reduction or a number that is not above 0.
    Source: arXiv:2602.04884, Eq. 5 and 6. Differs: the paper sums over tokens, which ties the weight to the length;
        `reduction="sum"` does that.
    """
    check_float("policy", policy, "BTS")
    check_float("teacher_policy", teacher_policy, "BTS", like=policy.shape)
    valid = check_mask("completion_mask", completion_mask, "BT", like=policy.shape[:2])
    check_range("weight", weight, 0.0)
    check_choice("reduction", reduction, ("mean", "sum"))
    check_divisor("num_tokens", num_tokens)
    check_divisor("num_completions", num_completions)

    jsd = masked_jensen_shannon(policy, teacher_policy.detach(), valid)
    count = valid.sum().clamp(min=1) if num_tokens is None else num_tokens
    loss = weight * masked_sum(jsd, valid) / (count if reduction == "mean" else num_completions or 1)

    with torch.no_grad():
        metrics = {
            "attn_distill/jsd": masked_sum(jsd, valid) / count,
            "attn_distill/attention_entropy": masked_sum(entropy(policy.to(jsd.dtype)), valid) / count,
            "attn_distill/teacher_entropy": masked_sum(entropy(teacher_policy.to(jsd.dtype)), valid) / count,
        }
    return Penalty(loss, metrics)
