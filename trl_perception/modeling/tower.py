"""One run of the vision tower a forward, whatever the media: what processes that share its parameters have to agree on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..media.visual_inputs import PIXELS
from .cache import CACHE
from .head import base_model


class OneTowerRun:
    """Hooks that make every forward of a model run the vision tower exactly once.

    Images and videos go through it together. A forward without media sends one token's worth of empty patches through it
    and adds  0 * sum(features)  to its hidden states, so that the backward is the same series of collectives as well.

    Args:
        model: a model of the Qwen-VL families, before it is wrapped.
    """

    def __init__(self, model: nn.Module):
        self.backbone = base_model(model).model
        self.paused = False
        self._unseen: Tensor | None = None
        self.backbone.register_forward_pre_hook(self._run_tower, with_kwargs=True)
        self.backbone.register_forward_hook(self._keep_in_graph)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Context manager that disables the hooks."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    def _run_tower(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
        cache = kwargs.get(CACHE)
        if self.paused or (cache is not None and cache.get_seq_length()):
            return None
        tower = self.backbone.visual
        given = {kind: kwargs.pop(name, None) for kind, name in PIXELS.items()}
        grids = {kind: kwargs[f"{kind}_grid_thw"] for kind, pixels in given.items() if pixels is not None}
        if not grids:
            self._unseen = tower(*_empty_patches(tower), return_dict=True).pooler_output
            return args, kwargs
        pixels = torch.cat([given[kind] for kind in grids]).type(tower.dtype)
        features = tower(pixels, torch.cat(list(grids.values())), return_dict=True).pooler_output
        sizes = {kind: (grid.prod(-1) // tower.spatial_merge_size**2).tolist() for kind, grid in grids.items()}
        parts = features.split([sum(of_kind) for of_kind in sizes.values()])
        kwargs["mm_encoder_outputs"] = {
            kind: BaseModelOutputWithPooling(pooler_output=part.split(sizes[kind]))
            for kind, part in zip(grids, parts, strict=True)
        }
        return args, kwargs

    def _keep_in_graph(self, module: nn.Module, args: tuple, output: Any) -> Any:
        unseen, self._unseen = self._unseen, None
        if unseen is not None:
            states = output.last_hidden_state
            output.last_hidden_state = states + 0 * unseen.sum().to(states)
        return output


def _empty_patches(tower: nn.Module) -> tuple[Tensor, Tensor]:
    """Patches (merge_size^2, patch dimension) of zeros and their grid (1,3): an image of one token."""
    size, projection = tower.spatial_merge_size, tower.patch_embed.proj
    width = projection.in_channels * torch.Size(projection.kernel_size).numel()
    pixels = torch.zeros(size**2, width, dtype=tower.dtype, device=tower.device)
    return pixels, torch.tensor([[1, size, size]], device=tower.device)
