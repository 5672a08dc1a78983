"""The media of a forward: pixels for the vision tower, or the features of a frozen one, computed once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.vision_utils import get_vision_window_index

from ..media import MEDIA_KINDS, VisualInputs, stack_media
from ..media.visual_inputs import PIXELS
from .head import base_model

VISION_FAMILIES = ("qwen2_vl", "qwen2_5_vl")


def media_kwargs(model: nn.Module, visuals: Sequence[VisualInputs]) -> dict[str, Any]:
    """The media of several prompts as keyword arguments of `model(...)`: features if they are computed, else pixels.

    Features from before the merger pass through the model's merger as it is now, with gradient.

    Errors: ValueError where neither pixels nor features are left.
    """
    for visual in visuals:
        _require_media(visual)
    if not any(visual.knows_features for visual in visuals):
        return stack_media(visuals)
    kwargs = {name: value for name, value in stack_media(visuals).items() if name not in PIXELS.values()}
    backbone = base_model(model).model
    outputs = {}
    for kind in MEDIA_KINDS:
        parts = [_features(backbone, visual, kind) for visual in visuals if visual.features(kind)]
        if parts:
            outputs[kind] = BaseModelOutputWithPooling(pooler_output=tuple(parts))
    return {**kwargs, "mm_encoder_outputs": outputs}


def feature_reuse_unsupported_reason(model: nn.Module) -> str | None:
    """Returns the reason why the features of this model's vision tower cannot be computed once, or None."""
    tower = getattr(getattr(base_model(model), "model", None), "visual", None)
    family = base_model(model).config.model_type
    if tower is None or family not in VISION_FAMILIES:
        return f"{family} is not among the families {', '.join(VISION_FAMILIES)}"
    trained = [name for name, value in tower.named_parameters() if value.requires_grad and "merger." not in name]
    if trained:
        return f"the vision tower is trained ({len(trained)} of its parameters); freeze_vision_tower freezes it"
    adapted = [name for name in adapted_modules(tower) if "merger" not in name.split(".")]
    if adapted:
        return f"an adapter changes {len(adapted)} modules of the vision tower, and is switched off for other readings"
    return None


def same_frozen_tower(model: nn.Module, other: nn.Module) -> bool:
    """Whether the frozen part of a model's vision tower has the same weights in another model, and so the same features."""
    mine, theirs = (dict(base_model(one).model.visual.named_parameters()) for one in (model, other))
    return all(torch.equal(value, theirs[name].to(value)) for name, value in mine.items() if not value.requires_grad)


def adapted_modules(model: nn.Module) -> list[str]:
    """Names of the modules that an adapter (PEFT) wraps or keeps a copy of, the model itself included."""
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


@torch.no_grad()
def encode(model: nn.Module, visual: VisualInputs, *, keep_pixels: bool = False) -> VisualInputs:
    """Returns the same inputs with the tower's features.

    With a frozen merger they are the merged ones (tokens, D); with one that trains or that an adapter changes, those
    before it, (tokens, patches a token, C) in the order of tokens.

    Args:
        keep_pixels: whether another model's tower is to see the media as well; else pixels are released.
    """
    if not visual.visual_tokens:
        return visual
    backbone = base_model(model).model
    merger = backbone.visual.merger
    merger_changes = any(value.requires_grad for value in merger.parameters()) or bool(adapted_modules(merger))
    known = {}
    for kind in MEDIA_KINDS:
        pixels, grid = getattr(visual, PIXELS[kind]), getattr(visual, f"{kind}_grid_thw")
        if pixels is None:
            continue
        output = _run_tower(backbone, pixels, grid, kind)
        merged = torch.cat(output.pooler_output)
        known[f"{kind}_features"] = (
            _before_merger(backbone, output.last_hidden_state, grid) if merger_changes else merged
        )
        if not keep_pixels:
            known[PIXELS[kind]] = pixels.to("meta")
    return replace(visual, **known)


def pixels_of(visual: VisualInputs) -> VisualInputs:
    """The same inputs for another model's tower: pixels alone.

    Errors: ValueError if they were released.
    """
    only_pixels = replace(visual, image_features=None, video_features=None)
    _require_media(only_pixels)
    return only_pixels


def _require_media(visual: VisualInputs) -> None:
    """Errors: ValueError where pixels were let go and no features stand for them."""
    for kind, name in PIXELS.items():
        pixels = getattr(visual, name)
        # An operation in place on empty pixels does nothing but count its version up.
        if pixels is not None and pixels.is_meta and (getattr(visual, f"{kind}_features") is None or pixels._version):
            raise ValueError(
                f"{visual.sample}: a view or another model reads this prompt's pixels, and only the policy's features of them "
                "were kept. Set `keeps_pixels = True` on the trainer, or reuse_vision_features=False."
            )


def _features(backbone: nn.Module, visual: VisualInputs, kind: str) -> Tensor:
    known = getattr(visual, f"{kind}_features")
    if known is None:
        output = _run_tower(backbone, getattr(visual, PIXELS[kind]), getattr(visual, f"{kind}_grid_thw"), kind)
        return torch.cat(output.pooler_output)
    if known.ndim == 2:
        return known
    merger = backbone.visual.merger
    return merger(known.flatten(0, 1).to(next(merger.parameters()).dtype))


def _run_tower(backbone: nn.Module, pixels: Tensor, grid: Tensor, kind: str) -> BaseModelOutputWithPooling:
    run = backbone.get_image_features if kind == "image" else backbone.get_video_features
    return run(pixels, grid, return_dict=True)


def _before_merger(backbone: nn.Module, states: Tensor, grid: Tensor) -> Tensor:
    """(patches, C) as the blocks leave them -> (tokens, patches a token, C), Qwen2.5-VL's window order undone."""
    tower = backbone.visual
    grouped = states.unflatten(0, (-1, tower.spatial_merge_size**2))
    if not hasattr(tower, "window_size"):
        return grouped
    order, _ = get_vision_window_index(
        grid,
        spatial_merge_size=tower.spatial_merge_size,
        window_size=tower.window_size,
        patch_size=tower.patch_size,
    )
    return grouped[torch.argsort(order.to(states.device))]
