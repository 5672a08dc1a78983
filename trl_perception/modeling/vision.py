"""The media of a forward: pixels for the vision tower, or the features of a frozen one, computed once."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from ..families import TEXT_ONLY, Family, family_of, supported
from ..media import MEDIA_KINDS, VisualInputs, padded_token_types
from ..media.visual_inputs import PIXELS
from ..transfer import to_device
from .head import base_model


def family_of_model(model: nn.Module) -> Family:
    """The family of a model in its wrappers."""
    return family_of(base_model(model))


def on_device(model: nn.Module, visual: VisualInputs) -> VisualInputs:
    """The visual inputs where the model is. Pixels travel in the number format to which the tower casts them at its start."""
    base, family = base_model(model), family_of_model(model)
    return visual.to(base.device, family.pixels_dtype(base.model) if visual.visual_tokens else None)


def media_kwargs(model: nn.Module, visuals: Sequence[VisualInputs]) -> dict[str, Any]:
    """The media of several prompts as keyword arguments of `model(...)`: features if they are computed, else pixels.

    Features from before the merger pass through the model's merger as it is now, with gradient.

    Errors: ValueError where neither pixels nor features are left.
    """
    for visual in visuals:
        _require_media(visual)
    family, base = family_of_model(model), base_model(model)
    visuals = [on_device(model, visual) for visual in visuals]
    if not any(visual.knows_features for visual in visuals):
        return _on_device(family.forward_kwargs(visuals), base)
    backbone = base.model
    features = [
        {kind: _features(family, backbone, visual, kind) for kind in MEDIA_KINDS if visual.features(kind)}
        for visual in visuals
    ]
    outputs = family.encoder_outputs(backbone, visuals, features)
    return {**_on_device(family.forward_kwargs(visuals, pixels=False), base), "mm_encoder_outputs": outputs}


def forward_kwargs(
    model: nn.Module, visuals: Sequence[VisualInputs], prompt_width: int, total_width: int
) -> dict[str, Any]:
    """The media of left-padded prompts with right-padded completions as keyword arguments of `model(...)`.

    Token types mark the prompt's placeholders by position: a completion counts as text whatever its ids are.

    Args:
        visuals: B visual inputs.
        prompt_width: padded width of the prompts. total_width: padded width of prompts and completions.
    Returns: empty for a text-only batch; else media as [`media_kwargs`], and token types where the family takes them.
    """
    kwargs = media_kwargs(model, visuals)
    if kwargs:
        types = padded_token_types(visuals, prompt_width, total_width)
        kwargs.update(_on_device(family_of_model(model).type_kwargs(types), base_model(model)))
    return kwargs


def feature_reuse_unsupported_reason(model: nn.Module) -> str | None:
    """Returns the reason why the features of this model's vision tower cannot be computed once, or None."""
    base, family = base_model(model), family_of_model(model)
    if family is TEXT_ONLY:
        return f"{base.config.model_type} is not among the families {supported()}"
    tower, mergers = family.tower(base.model), family.mergers(base.model)
    merging = {id(part) for merger in mergers for part in (*merger.parameters(), *merger.modules())}
    trained = [name for name, value in tower.named_parameters() if value.requires_grad and id(value) not in merging]
    if trained:
        return f"the vision tower is trained ({len(trained)} of its parameters); freeze_vision_tower freezes it"
    adapted = [name for name in adapted_modules(tower) if id(tower.get_submodule(name)) not in merging]
    if adapted:
        return f"an adapter changes {len(adapted)} modules of the vision tower, and is switched off for other readings"
    return None


def same_frozen_tower(model: nn.Module, other: nn.Module) -> bool:
    """Whether the frozen part of a model's vision side has the same weights in another model, and so the same features."""
    mine, theirs = (_vision_parameters(one) for one in (model, other))
    return all(torch.equal(value, theirs[name].to(value)) for name, value in mine.items() if not value.requires_grad)


def _vision_parameters(model: nn.Module) -> dict[tuple[int, str], Tensor]:
    family, backbone = family_of_model(model), base_model(model).model
    parts = (family.tower(backbone), *family.mergers(backbone))
    return {(part, name): value for part, module in enumerate(parts) for name, value in module.named_parameters()}


def adapted_modules(model: nn.Module) -> list[str]:
    """Names of the modules that an adapter (PEFT) wraps or keeps a copy of, the model itself included."""
    kinds = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


@torch.no_grad()
def encode(model: nn.Module, visual: VisualInputs, *, keep_pixels: bool = False) -> VisualInputs:
    """Returns the same inputs with the tower's features, where they are not known yet.

    With a frozen merger they are the merged ones, (tokens, depths * D); with one that trains or that an adapter changes,
    those before it, (tokens, patches a token, depths * C) in the order of tokens.

    Args:
        keep_pixels: whether another model's tower is to see the media as well, whose pixels then stay as they are and where
            they are; else pixels are released.
    """
    if not visual.visual_tokens:
        return visual
    family, backbone = family_of_model(model), base_model(model).model
    shown, mergers = on_device(model, visual), family.mergers(backbone)
    trained = any(value.requires_grad for merger in mergers for value in merger.parameters())
    read = family.before_mergers if trained or any(map(adapted_modules, mergers)) else family.run_tower
    known = {}
    for kind in MEDIA_KINDS:
        if (pixels := shown.pixels(kind)) is None or getattr(shown, f"{kind}_features") is not None:
            continue
        known[f"{kind}_features"] = read(backbone, shown, kind)
        if not keep_pixels:
            known[PIXELS[kind]] = pixels.to("meta")
    return replace(visual if keep_pixels else shown, **known)


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


def _on_device(kwargs: dict[str, Any], base: nn.Module) -> dict[str, Any]:
    return {key: to_device(value, base.device) for key, value in kwargs.items()}


def _features(family: Family, backbone: nn.Module, visual: VisualInputs, kind: str) -> Tensor:
    known = getattr(visual, f"{kind}_features")
    if known is None:
        return family.run_tower(backbone, visual, kind)
    return known if known.ndim == 2 else family.merge(backbone, known)
