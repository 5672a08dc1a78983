"""Attention rows without attention maps: tap queries and keys of a few layers while the model runs its own attention."""

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ..transfer import to_device
from .head import base_model
from .packed_attention import SPLIT, follow_packings
from .packing import Packing, packing_of

ROWS_PER_CHUNK = 32


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """Inputs of one layer's attention: queries and keys with positions applied.

    Args:
        layer: index of the layer.
        query: (B,H,S,d); key: (B,K,S,d) with H a multiple of K (grouped queries). Of a packed row: (1,H,L,d), (1,K,L,d).
        scaling: factor of the scores.
        softcap: scores become softcap * tanh(scores / softcap), or None.
        sliding_window: a query sees its last `sliding_window` keys, or None for all.
    """

    layer: int
    query: Tensor
    key: Tensor
    scaling: float
    softcap: float | None = None
    sliding_window: int | None = None
    packing: Packing | None = None

    @property
    def width(self) -> int:
        """S."""
        return self.key.size(2) if self.packing is None else self.packing.index.size(1)

    def of(self, rows: slice, positions: slice) -> "LayerAttention":
        """Some of the rows, and some of their positions."""
        if self.packing is not None:
            return replace(self, packing=self.packing.of(rows, positions))
        return replace(self, query=self.query[rows, :, positions], key=self.key[rows, :, positions])

    def queries(self, positions: slice | Tensor) -> Tensor:
        """Queries at chosen positions of the rows: (B,H,positions,d)."""
        return self.query[:, :, positions] if self.packing is None else self.packing.take(self.query, positions)

    def keys(self) -> Tensor:
        """Keys of the rows: (B,K,S,d)."""
        return self.key if self.packing is None else self.packing.take(self.key, slice(None))


@dataclass(frozen=True, eq=False)
class TokenStates:
    """Hidden states of rows, (B,S,D), or of a packed row, (1,L,D)."""

    values: Tensor
    packing: Packing | None = None

    def of(self, rows: slice, positions: slice) -> "TokenStates":
        """Some of the rows, and some of their positions."""
        if self.packing is not None:
            return replace(self, packing=self.packing.of(rows, positions))
        return replace(self, values=self.values[rows, positions])

    def at(self, positions: slice | Tensor) -> Tensor:
        """States at chosen positions of the rows: (B,positions,D)."""
        return self.values[:, positions] if self.packing is None else self.packing.take(self.values, positions)


class AttentionTap:
    """Context manager: every forward of the model appends `reduce(layers, attention_mask)` to `tap.results`.

    A group forward is presented as the B rows that it packs, with their padding mask.

    The model keeps its attention implementation (SDPA, Flex, flash attention, eager): the tap keeps references to the
    queries and keys that go into it, and `reduce` works on them after the decoder's forward. Gradients flow through them,
    also under non-reentrant gradient checkpointing: nothing is computed inside the checkpointed layers.

    Args:
        model: a transformers model, wrapped (PEFT, DDP, FSDP) or not.
        reduce: (list of LayerAttention in layer order, attention_mask (B,S) or None) -> what to keep.
        layers: the number of last full-attention layers, or their indices.

    Errors: ValueError for a model whose decoder layers have no softmax self-attention, for layers that do not exist, and,
    at the forward, for attention that rows cannot be recomputed for (sinks, position biases).
    """

    def __init__(
        self,
        model: nn.Module,
        reduce: Callable[[list[LayerAttention], Tensor | None], Any],
        *,
        layers: int | Sequence[int] = 1,
    ):
        self.decoder, self.backbone = decoder_of(model), backbone_of(model)
        attentions = self_attentions(self.decoder)
        if isinstance(layers, int):
            full = [index for index, module in attentions.items() if not window_of(module)]
            if not 1 <= layers <= len(full):
                raise ValueError(
                    f"{layers} attention layers are asked for; the model has {len(full)} with full attention."
                )
            layers = full[-layers:]
        unknown = sorted(set(layers) - set(attentions))
        if unknown:
            raise ValueError(f"Layers {unknown} have no softmax self-attention; those with are {sorted(attentions)}.")
        self.layer_of = {id(attentions[index]): index for index in layers}
        self.implementation = attentions[layers[0]].config._attn_implementation
        self.default = getattr(sys.modules[type(attentions[layers[0]]).__module__], "eager_attention_forward", None)
        self.reduce = reduce
        self.results: list[Any] = []
        self._caught: dict[int, LayerAttention] = {}
        self._mask: Tensor | None = None
        self._stack: ExitStack | None = None

    def __enter__(self) -> "AttentionTap":
        self.results = []
        self._stack = ExitStack()
        if self.implementation in SPLIT:  # beneath the tap, which is to see a packed row whole
            follow_packings(self.implementation)
        running = ALL_ATTENTION_FUNCTIONS.get(self.implementation, self.default)

        def tapped(module, query, key, value, attention_mask, **kwargs):
            if id(module) in self.layer_of:
                self._catch(module, query, key, kwargs)
            return tapped.running(module, query, key, value, attention_mask, **kwargs)

        tapped.running, tapped.follows_packings = running, getattr(running, "follows_packings", False)
        tapped.replaces = self.implementation in ALL_ATTENTION_FUNCTIONS._local_mapping
        ALL_ATTENTION_FUNCTIONS[self.implementation] = tapped
        self._stack.callback(self._remove, tapped)
        handle = self.backbone.register_forward_pre_hook(self._keep_mask, with_kwargs=True)
        self._stack.callback(handle.remove)
        self._stack.enter_context(_hook(self.decoder, self._finish))
        return self

    def __exit__(self, *error) -> None:
        self._stack.close()
        self._caught = {}

    def take(self) -> list[Any]:
        """The results since the last call, which are then forgotten."""
        results, self.results = self.results, []
        return results

    def _remove(self, tapped: Callable) -> None:
        """Take the tap out of the chain of taps, in which a later one may still be open."""
        outer = ALL_ATTENTION_FUNCTIONS[self.implementation]
        if outer is not tapped:
            while outer.running is not tapped:
                outer = outer.running
            outer.running, outer.replaces = tapped.running, tapped.replaces
        elif tapped.replaces:
            ALL_ATTENTION_FUNCTIONS[self.implementation] = tapped.running
        else:
            del ALL_ATTENTION_FUNCTIONS[self.implementation]

    def _catch(self, module: nn.Module, query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> None:
        for name in ("s_aux", "position_bias"):
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{type(module).__name__} passes {name} to its attention, for which rows are not recomputed. Use a "
                    "model with plain softmax attention in the tapped layers, or choose other layers."
                )
        scaling = kwargs.get("scaling")
        index = self.layer_of[id(module)]
        self._caught[index] = LayerAttention(
            layer=index,
            query=query,
            key=key,
            scaling=query.size(-1) ** -0.5 if scaling is None else scaling,
            softcap=kwargs.get("softcap"),
            sliding_window=kwargs.get("sliding_window"),
        )

    def _keep_mask(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._mask = kwargs.get("attention_mask")

    def _finish(self, kwargs: dict[str, Any], output: Any) -> None:
        caught, self._caught = self._caught, {}
        if len(caught) != len(self.layer_of):
            raise RuntimeError(f"Layers {sorted(caught)} of {sorted(self.layer_of.values())} called their attention.")
        mask, self._mask = self._mask, None
        packing = packing_of(mask)
        if packing is not None:
            mask = packing.mask
        elif mask is not None and (not isinstance(mask, Tensor) or mask.ndim != 2):
            raise ValueError("The model got a prepared attention mask; a padding mask (B,S) is wanted with a tap.")
        layers = [replace(caught[index], packing=packing) for index in sorted(caught)]
        self.results.append(self.reduce(layers, mask))


class HiddenTap:
    """Context manager: every forward of the decoder appends `reduce(its last hidden states)` to `tap.results`.

    Args:
        model: a transformers model, wrapped or not.
        reduce: [`TokenStates`] -> what to keep.
    """

    def __init__(self, model: nn.Module, reduce: Callable[[TokenStates], Any]):
        self.decoder, self.reduce, self.results = decoder_of(model), reduce, []
        self._stack: ExitStack | None = None

    def __enter__(self) -> "HiddenTap":
        self.results = []
        self._stack = ExitStack()
        self._stack.enter_context(_hook(self.decoder, self._finish))
        return self

    def _finish(self, kwargs: dict[str, Any], output: Any) -> None:
        packing = packing_of(kwargs.get("attention_mask"))
        self.results.append(self.reduce(TokenStates(output.last_hidden_state, packing)))

    def __exit__(self, *error) -> None:
        self._stack.close()

    def take(self) -> list[Any]:
        """The results since the last call, which are then forgotten."""
        results, self.results = self.results, []
        return results


def attention_rows(layer: LayerAttention, rows: slice, allowed: Tensor | None, pool: Tensor | None = None) -> Tensor:
    """Attention rows of one layer in float32, averaged over heads, recomputed in chunks of rows (also in the backward).

    row[b,r,s] = mean_h softmax_s( scaling * q[b,h,r] . k[b,s] )   over the allowed keys

    No more than a chunk of (heads, rows, keys) exists at a time, in the backward too.

    Args:
        layer: queries and keys, S positions each.
        rows: which query positions.
        allowed: (B,S) keys that are not padding, or None; causality and the layer's window are added here.
        pool: (S,F) float, multiplied to each chunk's rows; None keeps the rows.
    Returns: (B,R,S) or (B,R,F) float32; a row without any allowed key is zero.
    """
    keys = layer.keys()
    positions = torch.arange(layer.width, device=keys.device)
    chunks = []
    # A reduction inside the forward of a model in mixed precision would make bfloat16 of scores and pooled rows.
    with torch.autocast(keys.device.type, enabled=False):
        for at in positions[rows].split(ROWS_PER_CHUNK):
            visible = positions[None, :] <= at[:, None]
            if layer.sliding_window:
                visible &= positions[None, :] > at[:, None] - layer.sliding_window
            mask = visible[None] if allowed is None else visible[None] & allowed.bool()[:, None, :]
            query = layer.queries(at)
            if query.requires_grad or keys.requires_grad:
                part = checkpoint(_head_mean, query, keys, mask, layer.scaling, layer.softcap, use_reentrant=False)
            else:
                part = _head_mean(query, keys, mask, layer.scaling, layer.softcap)
            chunks.append(part if pool is None else part @ pool)
    return torch.cat(chunks, dim=1)


def pooled_rows(layers: Sequence[LayerAttention], rows: slice, allowed: Tensor | None, frames: Tensor) -> Tensor:
    """Attention to frames: mean over the layers and over the visual tokens of each frame.

    A[b,r,f] = mean over layers and heads and the tokens v of frame f of a[b,r,v], weights over ALL keys

    Args:
        layers, rows, allowed: as in [`attention_rows`].
        frames: (S,) frame of each key, on the host, -1 where it belongs to none; at least one frame.
    Returns: (B,R,F) float32.
    """
    count = int(frames.max()) + 1
    member = torch.nn.functional.one_hot(frames.clamp(min=0), count).float() * (frames >= 0)[:, None]
    share = to_device(member / member.sum(0).clamp(min=1), layers[0].keys().device)  # (S,F)
    return sum(attention_rows(layer, rows, allowed, share) for layer in layers) / len(layers)


def backbone_of(model: nn.Module) -> nn.Module:
    """The part of a model below its head: a vision tower and a decoder, or a decoder alone."""
    base = base_model(model)
    return getattr(base, "model", base)


def decoder_of(model: nn.Module) -> nn.Module:
    """The text decoder inside a model and its wrappers: the module whose layers attend to the whole sequence."""
    decoder = base_model(model).get_decoder()
    return getattr(decoder, "language_model", decoder)


def attention_implementation(model: nn.Module) -> str:
    """The attention implementation of the decoder, as "sdpa"."""
    return base_model(model).config.get_text_config()._attn_implementation


def self_attentions(decoder: nn.Module) -> dict[int, nn.Module]:
    """Softmax self-attention modules of a decoder by layer index; linear attention layers have none.

    Errors: ValueError where there is none at all.
    """
    found = {
        index: layer.self_attn
        for index, layer in enumerate(getattr(decoder, "layers", ()))
        if hasattr(layer, "self_attn") and hasattr(layer.self_attn, "config")
    }
    if not found:
        raise ValueError(f"{type(decoder).__name__} has no layers with softmax self-attention (layers[i].self_attn).")
    return found


def window_of(attention: nn.Module) -> int | None:
    """How many last keys a self-attention module sees, None for all: its own word, else its configuration's."""
    if hasattr(attention, "sliding_window") or getattr(attention.config, "layer_types", None):
        return getattr(attention, "sliding_window", None)
    return getattr(attention.config, "sliding_window", None)


def _head_mean(query: Tensor, key: Tensor, mask: Tensor, scaling: float, softcap: float | None) -> Tensor:
    """(B,H,r,d), (B,K,S,d), mask (B or 1,r,S) -> (B,r,S)."""
    batch, heads, count, dim = query.shape
    groups = key.size(1)
    grouped = query.float().reshape(batch, groups, heads // groups * count, dim)
    scores = (grouped @ key.float().transpose(2, 3)).view(batch, heads, count, -1) * scaling
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.masked_fill(~mask[:, None], float("-inf"))
    rows = torch.softmax(scores, dim=-1)
    return torch.where(mask[:, None], rows, 0.0).mean(dim=1)


class _hook:  # noqa: N801 (a context manager in the manner of contextlib)
    """Context manager under which `call(kwargs, output)` follows every forward of the module."""

    def __init__(self, module: nn.Module, call: Callable[[dict[str, Any], Any], None]):
        self.handle = None
        self.module, self.call = module, call

    def __enter__(self) -> None:
        self.handle = self.module.register_forward_hook(
            lambda module, args, kwargs, output: self.call(kwargs, output), with_kwargs=True
        )

    def __exit__(self, *error) -> None:
        self.handle.remove()
