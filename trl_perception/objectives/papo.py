"""PAPO: a penalty on answers that do not change when most of the image is hidden."""

import torch
from torch import Tensor

from .checks import check_divisor, check_finite, check_float, check_mask, check_range, working_dtype
from .divergences import k3
from .masked import masked_sum
from .results import Penalty

LOG_RATIO_LIMIT = 10.0  # nats


def papo_penalty(
    logps: Tensor,
    masked_logps: Tensor,
    completion_mask: Tensor,
    *,
    weight: float = 0.01,
    entropy_weight: float = 0.03,
    masked_entropy_weight: float = 0.03,
    num_tokens: float | None = None,
) -> Penalty:
    """Perception term of PAPO with its two entropy terms.

    loss = 1/N sum over the valid tokens of  -weight * k3(l, l') - entropy_weight * l - masked_entropy_weight * l'
    k3(l, l') = exp(d) - d - 1,  d = clamp(l' - l, -10, 10)

    l and l' are log p of the sampled token with its media and with patches of them masked. The first term wants them apart;
    the others, H = -mean l and H' = -mean l', keep either distribution from flattening.

    Args:
        logps: (B,T) l, nats, with gradient, anything on padding.
        masked_logps: (B,T) l', nats; gradient passes where it has one (the release's has none, so that its weight is inert).
        completion_mask: (B,T) bool, True on completion tokens.
        weight: gamma >= 0. entropy_weight: eta_1 >= 0. masked_entropy_weight: eta_2 >= 0.
        num_tokens: N > 0; None counts the valid tokens given. Of a micro-batch, take the mean over the step's micro-batches.
    Returns: loss, scalar with gradient. Metrics, sums over valid tokens / N in nats: papo/kl (k3), papo/entropy (H),
        papo/entropy_masked (H').
    Errors: ValueError for wrong shapes, a negative weight, a number that is not above 0, or a valid log p that is not finite.
    Source: arXiv:2507.06448, Eq. 4 to 6; release MikeWangWZHL/PAPO fb63bf4.
    """
    check_float("logps", logps, "BT")
    check_float("masked_logps", masked_logps, "BT", like=logps.shape)
    valid = check_mask("completion_mask", completion_mask, "BT", like=logps.shape)
    weights = {"weight": weight, "entropy_weight": entropy_weight, "masked_entropy_weight": masked_entropy_weight}
    for name, value in weights.items():
        check_range(name, value, 0.0)
    check_divisor("num_tokens", num_tokens)
    check_finite("logps", logps, valid)
    check_finite("masked_logps", masked_logps, valid)

    dtype = working_dtype(logps, masked_logps)
    shown, masked = (torch.where(valid, values.to(dtype), 0.0) for values in (logps, masked_logps))
    count = valid.sum().clamp(min=1) if num_tokens is None else num_tokens
    divergence = masked_sum(k3((masked - shown).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)), valid) / count
    entropy, masked_entropy = -shown.sum() / count, -masked.sum() / count
    loss = -weight * divergence + entropy_weight * entropy + masked_entropy_weight * masked_entropy
    metrics = {"papo/kl": divergence, "papo/entropy": entropy, "papo/entropy_masked": masked_entropy}
    return Penalty(loss, {name: value.detach() for name, value in metrics.items()})
