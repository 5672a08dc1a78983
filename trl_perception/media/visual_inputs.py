"""The visual inputs of a prompt, their batching for a forward pass, and the check of placeholder counts."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from .messages import MEDIA_KINDS

TOKEN_TYPE = {"image": 1, "video": 2}  # transformers' `mm_token_type_ids`; 0 is text
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@dataclass(frozen=True, eq=False)
class VisualInputs:
    """The visual inputs of one prompt, as its processor returns them. The G completions of the prompt share one object.

    Args:
        sample: name of the sample for errors.
        token_types: (P,) int, 0 text, 1 image, 2 video, over the prompt's tokens without padding.
        pixel_values: (image patches, patch dimension) float, or None without images.
        image_grid_thw: (images, 3) int, cells by time, height and width in patches.
        pixel_values_videos: (video patches, patch dimension) float, or None without videos.
        video_grid_thw: (videos, 3) int.
        second_per_grid_ts: (videos,) float, seconds between two temporal cells.
        image_features, video_features: precomputed outputs of a frozen vision tower: (tokens, D) merged, or
            (tokens, merge_size^2, C) before a trainable merger.
        image_features_of, video_features_of: the pixel tensors (by identity) from which the features were computed. If
            the pixels are replaced (`dataclasses.replace`), the features are dropped. Freed pixels are empty tensors on
            the device "meta", which no forward accepts.
        merge_size: patches per token along each side.
    """

    sample: str
    token_types: Tensor
    pixel_values: Tensor | None = None
    image_grid_thw: Tensor | None = None
    pixel_values_videos: Tensor | None = None
    video_grid_thw: Tensor | None = None
    second_per_grid_ts: Tensor | None = None
    image_features: Tensor | None = None
    video_features: Tensor | None = None
    image_features_of: Tensor | None = None
    video_features_of: Tensor | None = None
    merge_size: int = 2

    def __post_init__(self):
        for kind, name in PIXELS.items():
            pixels, features, of = (getattr(self, key) for key in (name, f"{kind}_features", f"{kind}_features_of"))
            stale = of is not None and of is not pixels
            object.__setattr__(self, f"{kind}_features", None if stale else features)
            object.__setattr__(self, f"{kind}_features_of", None if stale or features is None else pixels)

    def to(self, device: torch.device | str) -> "VisualInputs":
        """Return the inputs with every tensor on `device`."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {id(v): v if v.is_meta else v.to(device) for v in values.values() if isinstance(v, Tensor)}
        return replace(self, **{key: tensors.get(id(value), value) for key, value in values.items()})

    def features(self, kind: str) -> int:
        """Number of visual features (tokens) of the images or the videos: sum of t*h*w / merge_size^2."""
        grid = self.image_grid_thw if kind == "image" else self.video_grid_thw
        return 0 if grid is None else int((grid.prod(-1) // self.merge_size**2).sum())

    @property
    def knows_features(self) -> bool:
        """Whether the inputs hold precomputed features of a kind of medium."""
        return self.image_features is not None or self.video_features is not None

    @property
    def visual_tokens(self) -> int:
        """Number of visual tokens of the prompt, images and videos together."""
        return sum(self.features(kind) for kind in MEDIA_KINDS)


FORWARD_KEYS = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw", "second_per_grid_ts")
"""Keywords of a model's forward that `VisualInputs` holds, one attribute each."""


def stack_media(visual_inputs: Sequence[VisualInputs]) -> dict[str, Tensor]:
    """Concatenate the media of several samples for the model: keyword -> concatenated tensor.

    Keywords without a value in any sample are left out, and so are freed pixels.
    """
    given = {key: [getattr(v, key) for v in visual_inputs] for key in FORWARD_KEYS}
    parts = {key: [v for v in values if v is not None and not v.is_meta] for key, values in given.items()}
    return {key: torch.cat(tensors) for key, tensors in parts.items() if tensors}


def forward_kwargs(visual_inputs: Sequence[VisualInputs], prompt_width: int, total_width: int) -> dict[str, Tensor]:
    """Return the keyword arguments for `model(...)` of a batch of left-padded prompts with right-padded completions.

    Token types mark the prompt's placeholders by position: a completion counts as text whatever its ids are.

    Args:
        visual_inputs: B samples.
        prompt_width: padded width of the prompts.
        total_width: padded width of prompts and completions.
    Returns: empty for a text-only batch; else media and `mm_token_type_ids` (B,total_width) int.
    """
    kwargs = stack_media(visual_inputs)
    if kwargs:
        token_types = padded_token_types(visual_inputs, prompt_width, total_width)
        kwargs["mm_token_type_ids"] = token_types.to(next(iter(kwargs.values())).device)
    return kwargs


def padded_token_types(visual_inputs: Sequence[VisualInputs], prompt_width: int, total_width: int) -> Tensor:
    """Return token types (B,total_width) int of a batch of left-padded prompts with right-padded completions."""
    token_types = torch.zeros(len(visual_inputs), total_width, dtype=torch.long)
    for row, visual in enumerate(visual_inputs):
        token_types[row, prompt_width - len(visual.token_types) : prompt_width] = visual.token_types.cpu()
    return token_types


def check_placeholders(
    input_ids: Tensor,
    attention_mask: Tensor,
    placeholder_ids: dict[str, int],
    visual_inputs: Sequence[VisualInputs] | None,
) -> None:
    """Check that the number of placeholder tokens equals the number of visual features, sample by sample.

    Args:
        input_ids: (B,L) int; attention_mask: (B,L), 0 on padding.
        placeholder_ids: {"image": id, "video": id}.
        visual_inputs: B samples, or None if the media are missing.
    Errors: ValueError naming the sample, both counts and what to check.
    """
    for kind, token_id in placeholder_ids.items():
        counts = ((input_ids == token_id) & attention_mask.bool()).sum(1).tolist()
        for row, placeholders in enumerate(counts):
            visual = visual_inputs[row] if visual_inputs is not None else None
            features = visual.features(kind) if visual is not None else 0
            if placeholders == features:
                continue
            name = visual.sample if visual is not None else f"row {row} of the batch"
            raise ValueError(
                f"{name}: the forward has {placeholders} {kind} placeholder tokens but {features} {kind} features. "
                + (
                    f"The {kind}s of this sample were lost on the way: pass `visual_inputs` on with the batch."
                    if features == 0
                    else "A placeholder was written by hand or sampled into a completion, the prompt was cut, or these "
                    "are the media of another sample. Keep placeholders out of texts and completions, and prompts whole."
                )
            )
