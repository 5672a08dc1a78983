"""What a forward of a group tells, and how the forward of an update tells it for each of its groups."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from ..signals import LayerAttention, TokenStates
from .rollout import Group

AttentionReduce = Callable[[Sequence[LayerAttention], Tensor], Tensor]


@dataclass(frozen=True)
class SightedReads:
    """What `token_weights` reads of the policy on the prompt as it is.

    Args:
        entropies: next-token entropies.
        attention_layers: how many last layers' attention, 0 for none.
        states: last hidden states.
    """

    entropies: bool = False
    attention_layers: int = 0
    states: bool = False


class Reading(NamedTuple):
    """Of one group: per-token log-probs and entropies (G,T), reduced attention, and the predictors' states (G,T,D)."""

    logps: Tensor
    entropies: Tensor | None = None
    attention: Tensor | None = None
    states: Tensor | None = None


@dataclass(frozen=True, eq=False)
class SightedForward:
    """A forward of several groups as the policy sampled them, to be read group by group instead of running it again.

    Args:
        rows: which rows each group has, by the group's id.
        logps, entropies: (B,T), entropies may be None.
        attention: layers and mask (B,S) as a tap caught them, or None.
        states: last hidden states, or None.
    """

    rows: Mapping[int, slice]
    logps: Tensor
    entropies: Tensor | None = None
    attention: tuple[Sequence[LayerAttention], Tensor] | None = None
    states: TokenStates | None = None

    def knows(self, group: Group, entropy: bool, attention: AttentionReduce | None, states: bool) -> bool:
        """Whether it holds what is asked for."""
        wanted = {"entropies": entropy, "attention": attention is not None, "states": states}
        return id(group) in self.rows and all(getattr(self, name) is not None for name, want in wanted.items() if want)

    def read(self, group: Group, entropy: bool, attention: AttentionReduce | None, states: bool) -> Reading:
        rows, width = self.rows[id(group)], group.completion_ids.size(1)
        positions = slice(-len(group.prompt_ids) - width, None)  # without the batch's padding
        reduced = None
        if attention is not None:
            layers, mask = self.attention
            reduced = attention([layer.of(rows, positions) for layer in layers], mask[rows, positions])
        return Reading(
            logps=self.logps[rows],
            entropies=self.entropies[rows] if entropy else None,
            attention=reduced,
            states=self.states.of(rows, positions).at(slice(-width - 1, -1)) if states else None,
        )


def detached(layers: Sequence[LayerAttention], mask: Any) -> tuple[list[LayerAttention], Any]:
    """A tap's catch without its graph."""
    return [replace(layer, query=layer.query.detach(), key=layer.key.detach()) for layer in layers], mask
