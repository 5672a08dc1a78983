"""Forwards of rows and groups: log-probs, entropies, attention, hidden states."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..batch import Group, Scores
from ..media import VisualInputs, check_placeholders
from ..modeling import AttentionTap, HiddenTap, LayerAttention, TokenStates, View
from ..modeling.forward_selector import ForwardSelector
from .distributed import CollectiveScheduler

AttentionReduce = Callable[[Sequence[LayerAttention], Tensor], Tensor]
Taps = dict[str, AttentionTap | HiddenTap]


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

    def taps(self, model: nn.Module) -> Taps:
        """Taps for the forward of an update that catch attention and states, without graph."""
        taps: Taps = {}
        if self.attention_layers:
            taps["attention"] = AttentionTap(model, _detached, layers=self.attention_layers)
        if self.states:
            taps["states"] = HiddenTap(model, lambda hidden: replace(hidden, values=hidden.values.detach()))
        return taps


class ForwardOutput(NamedTuple):
    """Output of a forward of one group: log-probs and entropies (G,T), reduced attention, hidden states (G,T,D)."""

    logps: Tensor
    entropies: Tensor | None = None
    attention: Tensor | None = None
    states: Tensor | None = None


@dataclass(frozen=True, eq=False)
class CachedForward:
    """A forward of several groups as the policy sampled them, which is read group by group instead of running it again.

    Args:
        rows: which rows each group has, by the group's id.
        scores: log-probs and entropies (B,T), entropies may be None.
        attention: layers and mask (B,S) as a tap caught them, or None.
        states: last hidden states, or None.
    """

    rows: Mapping[int, slice] = field(default_factory=dict)
    scores: Scores = field(default_factory=lambda: Scores(torch.empty(0)))
    attention: tuple[Sequence[LayerAttention], Tensor] | None = None
    states: TokenStates | None = None

    @classmethod
    def of(cls, groups: Sequence[tuple[slice, Group]], scores: Scores, taps: Taps | None = None) -> "CachedForward":
        """Detaches the scores of a forward and takes what the taps caught in it."""
        caught = {name: tap.take()[-1] for name, tap in (taps or {}).items()}
        detached = Scores(*(None if value is None else value.detach() for value in scores))
        return cls({id(group): rows for rows, group in groups}, detached, **caught)

    def knows(self, group: Group, entropy: bool, attention: AttentionReduce | None, states: bool) -> bool:
        """Whether it holds what is asked for."""
        held = (self.scores.entropies, entropy), (self.attention, attention is not None), (self.states, states)
        return id(group) in self.rows and all(value is not None for value, wanted in held if wanted)

    def read(self, group: Group, entropy: bool, attention: AttentionReduce | None, states: bool) -> ForwardOutput:
        rows, width = self.rows[id(group)], group.completion_ids.size(1)
        positions = slice(-len(group.prompt_ids) - width, None)  # without the batch's padding
        reduced = None
        if attention is not None:
            layers, mask = self.attention
            reduced = attention([layer.of(rows, positions) for layer in layers], mask[rows, positions])
        return ForwardOutput(
            logps=self.scores.logps[rows],
            entropies=self.scores.entropies[rows] if entropy else None,
            attention=reduced,
            states=self.states.of(rows, positions).at(slice(-width - 1, -1)) if states else None,
        )


class PolicyReader:
    """Scores rows and reads groups, packed where the selector packs.

    Args:
        score: TRL's `_get_per_token_logps_and_entropies`.
        forwards: how rows are forwarded. collectives: when, among processes that share parameters.
        placeholder_ids: the placeholders that are compared with a prompt's visual features, by kind; empty where TRL
            prepares the prompts.
        rows_a_forward: rows of a forward of a group that is not packed.
    """

    def __init__(
        self,
        score: Callable[..., tuple],
        forwards: ForwardSelector,
        collectives: CollectiveScheduler,
        *,
        placeholder_ids: Mapping[str, int],
        rows_a_forward: int,
    ):
        self.score, self.forwards, self.collectives = score, forwards, collectives
        self.placeholder_ids, self.rows_a_forward = placeholder_ids, rows_a_forward
        self.cached = CachedForward()

    @contextmanager
    def reusing(self, forward: CachedForward) -> Iterator[None]:
        """Context manager in which `read` of the policy on its groups as they are takes values from this forward."""
        before, self.cached = self.cached, forward
        try:
            yield
        finally:
            self.cached = before

    def score_rows(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        completion_width: int,
        visuals: Sequence[VisualInputs] | None,
        *,
        batch_size: int | None = None,
        **options: Any,
    ) -> Scores:
        """TRL's scores of B rows (B,S), `batch_size` rows a forward, with their media.

        Args:
            visuals: the visual inputs of B rows; None where TRL prepares the prompts, whose media are in `options`.
            options: of TRL's method.
        """
        if not self.placeholder_ids and not self.forwards.packs_for(model):
            return Scores(*self.score(model, input_ids, attention_mask, completion_width, batch_size, **options))
        check_placeholders(input_ids, attention_mask, self.placeholder_ids, visuals)
        size = batch_size or len(input_ids)
        chunks = []
        for start in range(0, len(input_ids), size):
            rows = slice(start, start + size)
            ids, mask = input_ids[rows], attention_mask[rows]
            forward = self.forwards.bind(model, ids, mask, completion_width, self._of(visuals, rows))
            chunks.append(self.score(forward, ids, mask, completion_width, **options))
        logps, entropies, aux_losses = zip(*chunks, strict=True)
        return Scores(
            torch.cat(logps),
            None if entropies[0] is None else torch.cat(entropies),
            None if aux_losses[0] is None else torch.stack(aux_losses).mean(),
        )

    def read(
        self,
        group: Group,
        view: View,
        model: nn.Module,
        *,
        entropy: bool,
        attention: AttentionReduce | None,
        layers: int,
        states: bool,
    ) -> ForwardOutput:
        """One forward of a group under a view, packed or in micro-batches (see [`GRPOVideoTrainer.read`])."""
        (count, width), view = group.completion_ids.shape, view.to(group.completion_ids.device)
        prompt_ids = view.prompt_ids.expand(count, -1)
        input_ids = torch.cat([prompt_ids, group.completion_ids], dim=1)
        attention_mask = torch.cat([torch.ones_like(prompt_ids), group.attention_mask], dim=1)
        visuals = [view.visual] * count
        check_placeholders(input_ids, attention_mask, self.placeholder_ids, visuals)
        positions = view.positions_until(input_ids.size(1))
        taps: Taps = {}
        if attention is not None:
            taps["attention"] = AttentionTap(model, attention, layers=layers)
        if states:
            taps["states"] = HiddenTap(model, lambda hidden: hidden.at(slice(-width - 1, -1)))
        size = count if self.forwards.packs_for(model) else self.rows_a_forward
        scored = []
        with ExitStack() as stack:
            for tap in taps.values():
                stack.enter_context(tap)
            for start in range(0, count, size):
                rows = slice(start, start + size)
                ids, mask = input_ids[rows], attention_mask[rows]
                forward = self.forwards.bind(model, ids, mask, width, self._of(visuals, rows), positions)
                self.collectives.before_forward(model)
                scored.append(self.score(forward, ids, mask, width, compute_entropy=entropy))
        logps, entropies, _ = zip(*scored, strict=True)
        return ForwardOutput(
            logps=torch.cat(logps),
            entropies=None if entropies[0] is None else torch.cat(entropies),
            **{name: torch.cat(tap.results) for name, tap in taps.items()},
        )

    def _of(self, visuals: Sequence[VisualInputs] | None, rows: slice) -> Sequence[VisualInputs] | None:
        return visuals[rows] if self.placeholder_ids and visuals is not None else None


def _detached(layers: Sequence[LayerAttention], mask: Any) -> tuple[list[LayerAttention], Any]:
    return [replace(layer, query=layer.query.detach(), key=layer.key.detach()) for layer in layers], mask
