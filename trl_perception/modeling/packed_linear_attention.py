"""Linear attention over a packed row: the state after a prompt is computed once, and every completion starts from it."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from .packed_attention import segments_of
from .packing import PackedMask, Packing


def linear_attentions(decoder: nn.Module) -> dict[int, nn.Module]:
    """Return the linear attention modules of a decoder by layer index."""
    layers = enumerate(getattr(decoder, "layers", ()))
    return {index: layer.linear_attn for index, layer in layers if hasattr(layer, "linear_attn")}


def follow_packings_of_states(module_class: type[nn.Module]) -> None:
    """Teach a class of linear attention modules to follow a `PackedMask`; every other call passes through untouched.

    It stays taught: gradient checkpointing calls the modules again in the backward.
    """
    running = module_class.forward
    if getattr(running, "follows_packings", False):
        return

    @wraps(running)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        mask = kwargs.get("attention_mask")
        if not isinstance(mask, PackedMask):
            return running(self, *args, **kwargs)
        hidden_states = args[0] if args else kwargs["hidden_states"]
        return split_linear_attention(lambda states, cache: running(self, states, cache), hidden_states, mask.packing)

    forward.follows_packings = True
    module_class.forward = forward


def split_linear_attention(running: Callable, hidden_states: Tensor, packing: Packing) -> Tensor:
    """The linear attention of a packed row in two calls a run: the prefix; and its segments from the state after it.

    Args:
        running: (hidden states (N,W,D), cache or None) -> (N,W,D), left to right without padding.
        hidden_states: (1,L,D).
    Returns: (1,L,D), with the gradient of every segment through the one state of its prefix.
    """
    packing.served += 1
    pieces = []
    for run in packing.runs:
        count, width = run.segments.shape
        state = None
        if run.prefix:
            state = PrefixState()
            pieces.append(running(hidden_states[:, run.start : run.start + run.prefix], state))
            state.repeat(count)
        segments = segments_of(hidden_states[:, None], run)[:, 0]  # (G,W,D)
        if width == 1:  # one token behind a state is a decoding step, whose kernels have no backward
            segments = nn.functional.pad(segments, (0, 0, 0, 1))
        out = running(segments, state)[:, :width]
        pieces.append((out.flatten(0, 1) if run.full else out.flatten(0, 1)[run.filled])[None])
    return torch.cat(pieces, dim=1)


class PrefixState:
    """The states of one linear attention layer after a prefix, under the methods of transformers' `Cache`.

    Transformers copies new states into the old tensors, which autograd cannot follow; here they take their place.
    """

    def __init__(self) -> None:
        self.conv: dict[int, Tensor] = {}
        self.recurrent: dict[int, Tensor] = {}

    def repeat(self, count: int) -> None:
        """Give the state of the one row to `count` rows; their gradients add up."""
        for states in (self.conv, self.recurrent):
            for number, state in states.items():
                states[number] = state.repeat_interleave(count, dim=0)

    def get_conv_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """Return the last inputs of the convolution (N,C,K), or None at the start."""
        return self.conv.get(state_idx)

    def get_recurrent_state(self, layer_idx: int, state_idx: int = 0) -> Tensor | None:
        """Return the state of the recurrence, or None at the start."""
        return self.recurrent.get(state_idx)

    def is_recording_past(self, layer_idx: int) -> bool:
        """Return True: states are not updated in place."""
        return True

    def update_conv_state(self, states: Tensor, layer_idx: int, state_idx: int = 0, *, conv_kernel_size: int) -> Tensor:
        """Return the inputs of the convolution (N,C,W) with those before them."""
        if state_idx in self.conv:
            states = torch.cat([self.conv[state_idx], states], dim=-1)
        self.conv[state_idx] = states[..., -conv_kernel_size:]
        return states

    def update_recurrent_state(self, states: Tensor, layer_idx: int, state_idx: int = 0) -> Tensor:
        """Keep the state after the tokens."""
        self.recurrent[state_idx] = states
        return states
