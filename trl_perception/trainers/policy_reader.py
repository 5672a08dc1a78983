"""What a forward of a group tells, and how the forward of an update tells it for each of its groups."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..batch import Group
from ..media import check_placeholders
from ..modeling import AttentionTap, HiddenTap, LayerAttention, TokenStates, View
from .forward_selector import ForwardSelector

AttentionReduce = Callable[[Sequence[LayerAttention], Tensor], Tensor]


@dataclass(frozen=True)
class PolicyReads:
    """What `token_weights` reads of the policy on the prompt as it is.

    Args:
        entropies: next-token entropies.
        attention_layers: how many last layers' attention, 0 for none.
        states: last hidden states.
    """

    entropies: bool = False
    attention_layers: int = 0
    states: bool = False


class ForwardOutput(NamedTuple):
    """Of one group: per-token log-probs and entropies (G,T), reduced attention, and the predictors' states (G,T,D)."""

    logps: Tensor
    entropies: Tensor | None = None
    attention: Tensor | None = None
    states: Tensor | None = None


@dataclass(frozen=True, eq=False)
class CachedForward:
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

    def read(self, group: Group, entropy: bool, attention: AttentionReduce | None, states: bool) -> ForwardOutput:
        rows, width = self.rows[id(group)], group.completion_ids.size(1)
        positions = slice(-len(group.prompt_ids) - width, None)  # without the batch's padding
        reduced = None
        if attention is not None:
            layers, mask = self.attention
            reduced = attention([layer.of(rows, positions) for layer in layers], mask[rows, positions])
        return ForwardOutput(
            logps=self.logps[rows],
            entropies=self.entropies[rows] if entropy else None,
            attention=reduced,
            states=self.states.of(rows, positions).at(slice(-width - 1, -1)) if states else None,
        )


def detached(layers: Sequence[LayerAttention], mask: Any) -> tuple[list[LayerAttention], Any]:
    """A tap's catch without its graph."""
    return [replace(layer, query=layer.query.detach(), key=layer.key.detach()) for layer in layers], mask


def credit_taps(model: nn.Module, reads: PolicyReads) -> dict[str, AttentionTap | HiddenTap]:
    """Taps for the forward of an update, of what the credit reads beside log-probs and entropies."""
    taps: dict[str, AttentionTap | HiddenTap] = {}
    if reads.attention_layers:
        taps["attention"] = AttentionTap(model, lambda *caught: caught, layers=reads.attention_layers)
    if reads.states:
        taps["states"] = HiddenTap(model, lambda hidden: replace(hidden, values=hidden.values.detach()))
    return taps


def read_group(
    group: Group,
    view: View,
    model: nn.Module,
    score_rows: Callable[..., tuple],
    forwards: ForwardSelector,
    *,
    placeholder_ids: dict[str, int] | None,
    rows_a_forward: int,
    attention: AttentionReduce | None,
    layers: int,
    states: bool,
) -> ForwardOutput:
    """One forward of a group under a view, packed or in micro-batches, with everything that it is asked to tell.

    Args:
        score_rows: (forward, input_ids, attention_mask) -> (log-probs, entropies or None, ...), TRL's.
        placeholder_ids: the placeholders to hold against the view's features, or None for a text model.
        rows_a_forward: size of micro-batches where rows are not packed.
        attention, layers, states: see `GRPOVideoTrainer.read`.
    """
    count, width = group.completion_ids.shape
    prompt_ids = view.prompt_ids.expand(count, -1)
    input_ids = torch.cat([prompt_ids, group.completion_ids], dim=1)
    attention_mask = torch.cat([torch.ones_like(prompt_ids), group.attention_mask], dim=1)
    visuals = None if placeholder_ids is None else [view.visual] * count
    if visuals:
        check_placeholders(input_ids, attention_mask, placeholder_ids, visuals)
    taps: dict[str, AttentionTap | HiddenTap] = {}
    if attention is not None:
        taps["attention"] = AttentionTap(model, attention, layers=layers)
    if states:
        taps["states"] = HiddenTap(model, lambda hidden: hidden.at(slice(-width - 1, -1)))
    size = count if forwards.packs_for(model) else rows_a_forward
    scored = []
    with ExitStack() as stack:
        for tap in taps.values():
            stack.enter_context(tap)
        for start in range(0, count, size):
            rows = slice(start, start + size)
            ids, mask = input_ids[rows], attention_mask[rows]
            forward = forwards.bind(model, ids, mask, width, visuals and visuals[rows], view.positions)
            scored.append(score_rows(forward, ids, mask))
    logps, entropies, *_ = zip(*scored, strict=True)
    return ForwardOutput(
        logps=torch.cat(logps),
        entropies=None if entropies[0] is None else torch.cat(entropies),
        **{name: torch.cat(tap.results) for name, tap in taps.items()},
    )
