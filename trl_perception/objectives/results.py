"""What an objective returns: credit per token, or a penalty with gradient."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class TokenWeights:
    """Multiplicative credit for the tokens of completions: advantage[b,t] = advantage[b] * weights[b,t].

    Args:
        weights: (B,T) float32, >= 0, detached, 0 on padding.
        metrics: name -> value to log, such as `"appo/weight_mean"`.
    """

    weights: Tensor
    metrics: dict[str, float | Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Penalty:
    """A term added to the loss at every update: loss = policy loss + penalty.

    Args:
        loss: scalar with gradient (a graph-connected zero where there is nothing to penalise).
        metrics: name -> value to log, such as `"ral/jsd"`.
    """

    loss: Tensor
    metrics: dict[str, float | Tensor] = field(default_factory=dict)
