"""The visual inputs of a prompt, their batching for a forward pass, and the check of placeholder counts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..transfer import to_device
from .messages import MEDIA_KINDS

TOKEN_TYPE = {"image": 1, "video": 2}  # transformers' `mm_token_type_ids`; 0 is text
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}
ON_HOST = ("token_types", "image_grid_thw", "video_grid_thw", "second_per_grid_ts")
UNKNOWN_MEDIA = (
    "TRL prepared the images of these prompts (a processor of another family, tools, an environment or a rollout_func), and "
    "signals that read them are not available. Use a family of docs/models.md without those."
)


@dataclass(frozen=True, eq=False)
class VisualInputs:
    """The visual inputs of one prompt, as its processor returns them. The G completions of the prompt share one object.

    Token types, grids and seconds are read by the host and stay there; pixels and features are where the model is.

    Args:
        sample: name of the sample for errors.
        token_types: (P,) int, 0 text, 1 image, 2 video, over the prompt's tokens without padding.
        pixel_values: float, or None without images: (image patches, patch dimension), or (pictures, 3, height, width) of
            families whose processors make pictures of one size.
        image_grid_thw: (images, 3) int, cells by time, height and width, so that an image has t*h*w / merge_size^2 tokens:
            patches as the processor counts them, or, with a merge_size of 1, tokens.
        pixel_values_videos: float, or None without videos, as pixel_values.
        video_grid_thw: (videos, 3) int, as image_grid_thw; t is the number of temporal cells.
        second_per_grid_ts: (videos,) float, seconds between two temporal cells (Qwen2.5-VL).
        image_position_ids, video_position_ids: (pictures, patches, 2) int, places of patches, -1 on padding (Gemma 4).
        image_features, video_features: precomputed outputs of a frozen vision tower: (tokens, depths * D) merged, or
            (tokens, patches a token, depths * C) before a trainable merger.
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
    image_position_ids: Tensor | None = None
    video_position_ids: Tensor | None = None
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

    def to(self, device: torch.device | str, pixels: torch.dtype | None = None) -> "VisualInputs":
        """Return the inputs with pixels, places of patches and features on `device`.

        Args: pixels: to which the pixels are cast before they are copied, None for as they are.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ON_HOST}
        casts = dict.fromkeys(PIXELS.values(), pixels)
        tensors = {
            id(value): value if value.is_meta else to_device(value.to(casts.get(name) or value.dtype), device)
            for name, value in reversed(values.items())  # a pixel tensor is known as its features' source as well
            if isinstance(value, Tensor)
        }
        return replace(self, **{key: tensors.get(id(value), value) for key, value in values.items()})

    def tokens_of_media(self, kind: str) -> list[int]:
        """Number of visual features (tokens) of each image or each video: t*h*w / merge_size^2."""
        grid = self.grid(kind)
        return [] if grid is None else (grid.prod(-1) // self.merge_size**2).tolist()

    def features(self, kind: str) -> int:
        """Number of visual features (tokens) of the images or the videos together."""
        return sum(self.tokens_of_media(kind))

    def grid(self, kind: str) -> Tensor | None:
        """The grids of the images or the videos."""
        return self.image_grid_thw if kind == "image" else self.video_grid_thw

    def pixels(self, kind: str) -> Tensor | None:
        """The pixels of the images or the videos."""
        return self.pixel_values if kind == "image" else self.pixel_values_videos

    @property
    def knows_features(self) -> bool:
        """Whether the inputs hold precomputed features of a kind of medium."""
        return self.image_features is not None or self.video_features is not None

    @property
    def visual_tokens(self) -> int:
        """Number of visual tokens of the prompt, images and videos together."""
        return sum(self.features(kind) for kind in MEDIA_KINDS)


FORWARD_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
    "second_per_grid_ts",
    "image_position_ids",
    "video_position_ids",
)
"""Keywords of models' forwards that `VisualInputs` holds, one attribute each."""


def padded_token_types(visual_inputs: Sequence[VisualInputs], prompt_width: int, total_width: int) -> Tensor:
    """Return token types (B,total_width) int of a batch of left-padded prompts with right-padded completions."""
    token_types = torch.zeros(len(visual_inputs), total_width, dtype=torch.long)
    for row, visual in enumerate(visual_inputs):
        token_types[row, prompt_width - len(visual.token_types) : prompt_width] = visual.token_types
    return token_types


def check_placeholders(
    input_ids: Tensor,
    attention_mask: Tensor,
    placeholder_ids: Mapping[str, int],
    visual_inputs: Sequence[VisualInputs] | None,
) -> None:
    """Check that the number of placeholder tokens equals the number of visual features, sample by sample.

    Args:
        input_ids: (B,L) int; attention_mask: (B,L), 0 on padding.
        placeholder_ids: {"image": id, "video": id}; the ids may be one.
        visual_inputs: B samples, or None if the media are missing.
    Errors: ValueError naming the sample, both counts and what to check.
    """
    for token_id in dict.fromkeys(placeholder_ids.values()):
        kinds = [kind for kind, placeholder in placeholder_ids.items() if placeholder == token_id]
        counts = ((input_ids == token_id) & attention_mask.bool()).sum(1).tolist()
        for row, placeholders in enumerate(counts):
            visual = visual_inputs[row] if visual_inputs is not None else None
            features = sum(visual.features(kind) for kind in kinds) if visual is not None else 0
            if placeholders == features:
                continue
            kind, name = " and ".join(kinds), visual.sample if visual is not None else f"row {row} of the batch"
            raise ValueError(
                f"{name}: the forward has {placeholders} {kind} placeholder tokens but {features} {kind} features. "
                + (
                    f"The {kind}s of this sample were lost on the way: pass `visual_inputs` on with the batch."
                    if features == 0
                    else "A placeholder was written by hand or sampled into a completion, the prompt was cut, or these "
                    "are the media of another sample. Keep placeholders out of texts and completions, and prompts whole."
                )
            )
