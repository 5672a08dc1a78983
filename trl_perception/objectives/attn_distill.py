"""On-policy attention distillation: the student looks where the teacher looks, on the student's own rollouts."""

import torch
from torch import Tensor

from .checks import check_choice, check_float, check_mask, check_range
from .divergences import entropy, masked_jensen_shannon
from .masked import masked_mean, masked_sum
from .results import Penalty


def attn_distill_penalty(
    policy: Tensor, teacher_policy: Tensor, completion_mask: Tensor, *, weight: float = 0.5, reduction: str = "mean"
) -> Penalty:
    """Pull the student's attention towards the teacher's, with no advantage: every token counts alike.

    loss = weight * mean over all valid tokens (b,t) of the batch of JSD(p_student[b,t] || p_teacher[b,t])

    Args:
        policy: (B,T,S) student's attention policy, rows summing to 1 (see `attention_policy`), anything on padding.
        teacher_policy: (B,T,S) the teacher's over the same keys, detached here.
        completion_mask: (B,T) bool, True on completion tokens.
        weight: gamma >= 0; 0 switches the term off.
        reduction: "mean" over the batch's valid tokens, or "sum" over them.
    Returns: loss, scalar with gradient (a graph-connected zero where the mask is empty). Metrics, means over valid
        tokens in nats, 0 where there are none: attn_distill/jsd, attn_distill/attention_entropy (the student's),
        attn_distill/teacher_entropy.
    Errors: ValueError for wrong shapes, a negative weight or an unknown reduction.
    Source: arXiv:2602.04884, Eq. 5 and 6. Differs: the paper sums over tokens, which ties the weight to the length;
        `reduction="sum"` does that.
    """
    check_float("policy", policy, "BTS")
    check_float("teacher_policy", teacher_policy, "BTS", like=policy.shape)
    valid = check_mask("completion_mask", completion_mask, "BT", like=policy.shape[:2])
    check_range("weight", weight, 0.0)
    check_choice("reduction", reduction, ("mean", "sum"))

    jsd = masked_jensen_shannon(policy, teacher_policy.detach(), valid)
    loss = weight * (masked_mean(jsd, valid) if reduction == "mean" else masked_sum(jsd, valid))

    with torch.no_grad():
        metrics = {
            "attn_distill/jsd": masked_mean(jsd, valid),
            "attn_distill/attention_entropy": masked_mean(entropy(policy.to(jsd.dtype)), valid),
            "attn_distill/teacher_entropy": masked_mean(entropy(teacher_policy.to(jsd.dtype)), valid),
        }
    return Penalty(loss, metrics)
