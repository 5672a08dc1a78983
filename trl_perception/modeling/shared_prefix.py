"""Decoding: the completions of a prompt attend to one copy of its keys and values."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer


def plain_softmax(arguments: dict[str, Any]) -> bool:
    """Whether these arguments of an attention function change nothing but scale and mask."""
    others = ("softcap", "sliding_window", "dropout")
    no_tensor = arguments.get("s_aux") is None and arguments.get("position_bias") is None
    return no_tensor and not any(arguments.get(name) for name in others)


class SharedKeys(Tensor):
    """Keys (B*G,K,t,d) of completions, behind a prefix that `layer` holds once a prompt.

    Attention that does not know them cannot use them by mistake: every computation with them fails.
    """

    layer: "SharedPrefixLayer"

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = getattr(function, "__name__", "")
        if name not in ("__get__", "__set__", "dim", "size", "__len__", "__repr__"):
            raise RuntimeError(
                f"The keys of a shared prompt reached attention that does not know them ({name}). Set shared_prefill=False."
            )
        return super().__torch_function__(function, types, args, kwargs or {})


class SharedPrefixLayer(DynamicLayer):
    """A layer's cache of B prompts and G completions of each: B P + B G t keys and values, not B G (P + t).

    Args:
        prefix: the cache of the prompts, keys and values (B,K,P,d).
        repeats: G.
    """

    def __init__(self, prefix: DynamicLayer, repeats: int):
        super().__init__()
        self.prefix_keys, self.prefix_values, self.repeats = prefix.keys, prefix.values, repeats

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append keys and values (B*G,K,q,d) and return those behind the prefix, for [`attend_to_shared_prefix`]."""
        keys, values = super().update(key_states, value_states, *args, **kwargs)
        shared = keys.as_subclass(SharedKeys)
        shared.layer = self
        return shared, values

    def get_seq_length(self) -> int:
        return self.prefix_keys.size(-2) + super().get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def whole(self) -> tuple[Tensor, Tensor]:
        """Return keys and values (B*G,K,P+t,d), the prefix repeated."""
        pairs = ((self.prefix_keys, self.keys), (self.prefix_values, self.values))
        keys, values = (torch.cat([prefix.repeat_interleave(self.repeats, 0), own], -2) for prefix, own in pairs)
        return keys, values


def share_prefix(cache: Cache, rows: Tensor, *, keys_once: bool) -> None:
    """Let the cache of B prompts serve their completions.

    Args:
        rows: (B*G,) the prompt of each completion: 0 G times, 1 G times, and so on.
        keys_once: whether the model's attention takes [`SharedKeys`]. Without it, and in layers that keep a window or a
            state, the cache is repeated.
    """
    for index, layer in enumerate(cache.layers):
        if keys_once and type(layer) is DynamicLayer:
            cache.layers[index] = SharedPrefixLayer(layer, len(rows) // len(layer.keys))
        else:
            layer.reorder_cache(rows)


def attend_to_shared_prefix(
    running: Callable,
    module: nn.Module,
    query: Tensor,
    key: SharedKeys,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Return the attention of one new token a completion,  softmax([q k_prefix, q k_own]) [v_prefix; v_own].

    The scores of both parts are joined, not the keys: the prefix is read once for the G completions of a prompt. Scores and
    softmax are in float32.

    Args:
        running: the model's attention function, for a softmax of another form.
        query: (B*G,H,1,d). key, value: (B*G,K,t,d), with H a multiple of K.
        attention_mask: None, (B*G,P+t), or (B*G,1,1,P+t); boolean or added to the scores.
    Returns: (B*G,1,H,d) and None, as transformers' interface does.
    """
    layer = key.layer
    if query.size(2) > 1 or not plain_softmax(kwargs):
        return running(module, query, *layer.whole(), attention_mask, **kwargs)
    own, repeats = layer.keys, layer.repeats
    rows, heads, _, dim = query.shape
    prompts, groups, prefix = rows // repeats, own.size(1), layer.prefix_keys.size(-2)
    scale = dim**-0.5 if kwargs.get("scaling") is None else kwargs["scaling"]
    grouped = query.view(rows, groups, heads // groups, dim)
    together = _by_prompt(grouped, prompts).float() @ layer.prefix_keys.float().mT  # (B,K,G*r,P)
    alone = grouped.float() @ own.float().mT  # (B*G,K,r,t)
    scores = scale * torch.cat([_by_row(together, repeats), alone], -1)
    if attention_mask is not None:
        mask = attention_mask.view(rows, 1, 1, -1)[..., : scores.size(-1)]
        if mask.is_floating_point():
            scores += mask
        else:
            scores.masked_fill_(~mask.bool(), torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1).to(value.dtype)
    of_prefix = _by_prompt(weights[..., :prefix], prompts) @ layer.prefix_values
    out = _by_row(of_prefix, repeats) + weights[..., prefix:] @ value
    return out.reshape(rows, 1, heads, dim), None


def _by_prompt(tensor: Tensor, prompts: int) -> Tensor:
    """(B*G,K,r,n) -> (B,K,G*r,n)."""
    return tensor.unflatten(0, (prompts, -1)).transpose(1, 2).flatten(2, 3)


def _by_row(tensor: Tensor, repeats: int) -> Tensor:
    """(B,K,G*r,n) -> (B*G,K,r,n)."""
    return tensor.unflatten(2, (repeats, -1)).transpose(1, 2).flatten(0, 1)
