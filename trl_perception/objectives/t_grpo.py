"""T-GRPO: correct answers earn more where they are likelier with the frames in order than out of order."""

import torch
from torch import Tensor

from .checks import check_float, check_range

ROUNDING = 1e-9


@torch.no_grad()
def t_grpo_bonus(
    accuracy: Tensor,
    shuffled_accuracy: Tensor,
    *,
    bonus: float = 0.3,
    margin: float = 0.8,
    correct_above: float = 0.1,
) -> Tensor:
    """Temporal bonus of T-GRPO for the completions of one prompt.

    b_i = bonus  if accuracy_i > correct_above  and  mean accuracy >= margin * mean shuffled accuracy,  else 0

    Args:
        accuracy: (G,) accuracy rewards of the completions on the frames in order; NaN does not apply.
        shuffled_accuracy: (n,) the same on the frames in random order, n >= 1.
        bonus: >= 0; 0 is GRPO. margin: >= 0. correct_above: the accuracy above which a completion is correct.
    Returns: (G,) float32. All 0 where no accuracy of either kind applies.
    Errors: ValueError for wrong shapes or settings.
    Source: arXiv:2503.21776, section 3.1; release tulerfeng/Video-R1 59d65c3.
    """
    check_float("accuracy", accuracy, "G")
    check_float("shuffled_accuracy", shuffled_accuracy, "G")
    for name, value in {"bonus": bonus, "margin": margin, "correct_above": correct_above}.items():
        check_range(name, value, 0.0)
    ordered, shuffled = accuracy.double().nanmean(), shuffled_accuracy.double().nanmean()
    # 0.8 * (1.25 / 3) rounds to just above 1 / 3. NaN compares as False.
    earns = (accuracy > correct_above) & (ordered >= margin * shuffled - ROUNDING)
    return bonus * earns.float()
