"""The attention policy of a batch, as RAL and attention distillation read it: p[b,t] over earlier positions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..media import VisualInputs
from ..media.frames import token_frames
from ..media.visual_inputs import UNKNOWN_MEDIA
from ..objectives import attention_policy
from ..transfer import to_device
from . import LayerAttention, attention_rows

LARGEST_ON_DEVICE = 64 * 2**20
"""Bytes of a group's kept rows from which on they wait in host memory."""


def policy_of(
    layers: Sequence[LayerAttention],
    mask: Tensor | None,
    completion_width: int,
    visual_keys: Tensor,
    *,
    query: str,
    keys: str,
) -> Tensor:
    """p[b,t,s], the attention of completion token t over the positions before it, mean over heads and layers.

    Args:
        layers: tapped layers of a forward over S positions, the last T of them the completion.
        mask: (B,S) attention mask, or None.
        visual_keys: (B,S) bool, the prompt's visual tokens.
        query: "token", the rows of the completion's tokens, or "predictor", the rows before them.
        keys: "all" earlier positions, or the "visual" ones alone.
    Returns: (B,T,S) float32, zero where a token has no allowed key.
    """
    width = layers[0].width
    rows = slice(-completion_width, None) if query == "token" else slice(-completion_width - 1, -1)
    averaged = sum(attention_rows(layer, rows, mask) for layer in layers) / len(layers)
    positions = torch.arange(width, device=averaged.device)
    allowed = (positions[None, :] < positions[-completion_width:, None]).expand_as(averaged)
    if mask is not None:
        allowed = allowed & mask.bool()[:, None, :]
    if keys == "visual":
        allowed = allowed & visual_keys[:, None, :]
    return attention_policy(averaged, allowed)


def group_policy(
    visual: VisualInputs, completion_width: int, *, query: str, keys: str
) -> Callable[[Sequence[LayerAttention], Tensor], Tensor]:
    """What a tap reduces the forward of a whole group to: its attention policy (rows,T,P+T), P without padding."""
    seen = torch.cat([visual.token_types > 0, torch.zeros(completion_width, dtype=torch.bool)])

    def reduce(layers: Sequence[LayerAttention], mask: Tensor) -> Tensor:
        return policy_of(
            layers, mask, completion_width, to_device(seen, mask.device).expand(len(mask), -1), query=query, keys=keys
        )

    return reduce


def visuals_of(inputs: Mapping[str, Any]) -> Sequence[VisualInputs]:
    """The visual inputs of a micro-batch's rows; empty for texts that TRL prepared.

    Errors: ValueError for images that TRL prepared.
    """
    if "pixel_values" in inputs:
        raise ValueError(UNKNOWN_MEDIA)
    return inputs.get("visual_inputs") or ()


def visual_keys(inputs: Mapping[str, Any]) -> Tensor:
    """(B,P+T) bool: where a left-padded batch holds the prompt's visual tokens.

    Errors: ValueError for images that TRL prepared.
    """
    batch, width = inputs["prompt_ids"].shape
    keys = torch.zeros(batch, width + inputs["completion_ids"].size(1), dtype=torch.bool)
    for row, visual in enumerate(visuals_of(inputs)):
        keys[row, width - len(visual.token_types) : width] = visual.token_types > 0
    return to_device(keys, inputs["prompt_ids"].device)


def kept(policy: Tensor, dtype: str) -> Tensor:
    """A group's attention policy (G,T,P+T) as it waits for its updates: in this number format, on the host if it is large."""
    policy = policy.to(getattr(torch, dtype))
    return policy.cpu() if policy.nbytes > LARGEST_ON_DEVICE else policy


def padded(policies: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """Kept policies (T,S_b) of prompts without padding as a left-padded batch like `like` (B,T,S); None gives zeros."""
    empty, width = torch.zeros_like(like[0]), like.size(-1)
    there = [empty if rows is None else to_device(rows, like.device).to(like.dtype) for rows in policies]
    return torch.stack([pad(rows, (width - rows.size(-1), 0)) for rows in there])


def frame_mass(policy: Tensor, inputs: Mapping[str, Any]) -> list[Tensor]:
    """Of each row of a micro-batch, the attention of its tokens to its frames: B tensors (T,F), zero wide without any.

    Args:
        policy: (B,T,S), left-padded as `inputs` are.
    """
    width, masses = inputs["prompt_ids"].size(1), []
    if not visuals_of(inputs):  # prompts that TRL prepared, of a text model for one
        return [row[:, :0] for row in policy]
    for row, visual in zip(policy, visuals_of(inputs), strict=True):
        frames = token_frames(visual)
        member = to_device(torch.nn.functional.one_hot(frames + 1)[:, 1:].to(row.dtype), row.device)
        masses.append(row[:, width - len(frames) : width] @ member)
    return masses


def attention_metrics(
    prefix: str, policy: Tensor, visual: Tensor, mask: Tensor, attention_mask: Tensor, num_tokens: float
) -> dict[str, Tensor]:
    """`{prefix}/visual_mass`, `{prefix}/sink_mass`: attention on visual keys and on the first key, mean over tokens.

    Args:
        policy: (B,T,S); visual: (B,S) bool; mask: (B,T) bool, tokens that count; attention_mask: (B,S).
        num_tokens: what the sums over tokens are divided by.
    """
    first = attention_mask.int().argmax(dim=1)
    mass = {
        "visual_mass": (policy * visual[:, None, :]).sum(-1),
        "sink_mass": policy.gather(2, first[:, None, None].expand(-1, policy.size(1), 1))[..., 0],
    }
    return {f"{prefix}/{key}": torch.where(mask, value, 0.0).sum().detach() / num_tokens for key, value in mass.items()}
