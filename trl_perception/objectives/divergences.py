"""Divergences between distributions, in nats; float32 inside (float64 stays float64), in log space where it matters."""

import math

import torch
from torch import Tensor

from .checks import working_dtype
from .masked import masked_mean


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Jensen-Shannon divergence.

    JSD(p||q) = 1/2 KL(p||m) + 1/2 KL(q||m),  m = (p+q)/2            in [0, ln 2]

    With x = (p-q)/(p+q) this is sum_s m [x atanh(x) + 1/2 ln(1-x^2)], whose terms do not cancel when p is close to q
    (there each is about m x^2 / 2; p ln(p/m) + q ln(q/m) would leave rounding noise in float32). The gradient is
    dJSD/dp = 1/2 ln(p/m): exactly 0 where p == q. Where p is 0 it would be -inf; it is 0 there, as with xlogy, because
    a key that a softmax gave no mass has no gradient to pass on. Only p and q are kept for the backward.

    Args: p, q (...,S) >= 0, each row summing to 1, or to 0 if it is empty (JSD 0 if both are).
    Returns: (...) float32, or float64 where an input is.
    Errors: ValueError for unequal shapes.
    Source: arXiv:2602.04884, Eq. 3.
    """
    if p.shape != q.shape:
        raise ValueError(
            f"p has shape {tuple(p.shape)} and q {tuple(q.shape)}; wanted equal shapes. "
            "Take both from the same tokens over the same keys."
        )
    dtype = working_dtype(p, q)
    return _JensenShannon.apply(p.to(dtype), q.to(dtype))


class _JensenShannon(torch.autograd.Function):
    """Both directions of `jensen_shannon`, each a plain formula per key, so that a chunked twin can share them."""

    @staticmethod
    def forward(ctx, p: Tensor, q: Tensor) -> Tensor:
        ctx.save_for_backward(p, q)
        return _jensen_shannon_terms(p, q).sum(-1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        p, q = ctx.saved_tensors
        half = grad.unsqueeze(-1) / 2
        grad_p = half * _log_ratio_to_mean(p, q) if ctx.needs_input_grad[0] else None
        grad_q = half * _log_ratio_to_mean(q, p) if ctx.needs_input_grad[1] else None
        return grad_p, grad_q


def _contrast(p: Tensor, q: Tensor) -> Tensor:
    """x = (p-q)/(p+q), in [-1, 1]; 0 where both are 0."""
    total = p + q
    return (p - q) / torch.where(total > 0, total, 1.0)


def _jensen_shannon_terms(p: Tensor, q: Tensor) -> Tensor:
    """m [x atanh(x) + 1/2 ln(1-x^2)] for each key; m ln 2 where one of the two is 0."""
    x = _contrast(p, q)
    one_sided = x.abs() == 1
    inside = torch.where(one_sided, 0.0, x)
    shape = inside * torch.atanh(inside) + torch.log1p(-inside.square()) / 2
    return (p + q) / 2 * torch.where(one_sided, math.log(2), shape)


def _log_ratio_to_mean(p: Tensor, q: Tensor) -> Tensor:
    """ln(p/m) = ln(1+x), m = (p+q)/2; 0 where p is 0. Near p == q from x, which is exact there; far away from p/m."""
    x = _contrast(p, q)
    near = x > -0.5
    far = ~near & (p != 0)
    ratio = torch.where(far, 2 * p / torch.where(far, p + q, 1.0), 1.0)
    return torch.where(near, torch.log1p(torch.where(near, x, 0.0)), torch.log(ratio))


def masked_jensen_shannon(policy: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """JSD of each valid token's rows; 0, with no gradient, on padding, whatever padding holds.

    Args: policy, reference (B,T,S) rows summing to 1 or 0; mask (B,T) bool.  Returns: (B,T) nats.
    """
    valid = mask.unsqueeze(-1)
    return jensen_shannon(torch.where(valid, policy, 0.0), torch.where(valid, reference, 0.0))


def entropy(p: Tensor) -> Tensor:
    """H(p) = -sum_s p ln p in nats, with 0 ln 0 = 0.  Args: p (...,S).  Returns: (...)."""
    return -torch.xlogy(p, p).sum(-1)


def kl_divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p||q) = sum_v p (ln p - ln q) in nats, with 0 (ln 0 - anything) = 0.

    Args: log_p, log_q (...,N) log-probabilities, -inf allowed.  Returns: (...), inf where p > 0 and q = 0.
    """
    p = log_p.exp()
    return torch.where(p == 0, 0.0, p * (log_p - log_q)).sum(-1)


def log_mixture(log_probs: Tensor, valid: Tensor) -> Tensor:
    """ln m, m = arithmetic mean over the valid members of exp(log_probs); equal members give it back bit for bit.

    Args: log_probs (...,G,N), -inf allowed, anything where not valid; valid (...,G) bool.
    Returns: (...,N), -inf where no valid member has mass.
    """
    log_probs = torch.where(valid.unsqueeze(-1), log_probs, -math.inf)
    top = log_probs.amax(-2, keepdim=True)
    top = torch.where(top == -math.inf, 0.0, top)
    count = valid.sum(-1, keepdim=True).clamp(min=1)
    return torch.log((log_probs - top).exp().sum(-2) / count) + top.squeeze(-2)


def mean_kl_to_mixture(log_probs: Tensor, valid: Tensor) -> Tensor:
    """D = mean over valid i of KL(p[i] || m), m = their mixture, in [0, ln G]: 0 exactly when they agree.

    Args: log_probs (...,G,N), -inf allowed, anything where not valid; valid (...,G) bool.  Returns: (...) nats.
    """
    divergence = kl_divergence(log_probs, log_mixture(log_probs, valid).unsqueeze(-2))
    return masked_mean(divergence, valid, dim=-1).clamp(min=0)


def k3(log_ratio: Tensor) -> Tensor:
    """KL(p||q) estimated from one sample of p:  (r - 1) - ln r >= 0,  ln r = log q - log p at that sample.

    Args: log_ratio (...) ln r, nats.  Returns: (...) nats, inf where exp overflows.
    """
    # Rounding can leave -1e-9 where the ratio is near 1; the estimate itself is never negative.
    return (torch.expm1(log_ratio) - log_ratio).clamp(min=0)
