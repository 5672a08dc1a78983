"""Gemma 4: patches with their places, a time before each frame; pictures of one kind may see themselves both ways."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import ProcessorMixin
from transformers.models.gemma4.image_processing_gemma4 import get_aspect_ratio_preserving_size

from ..media.visual_inputs import PIXELS, VisualInputs
from .family import ALONE, EngineItem, Processed
from .windows import Windowed


class Gemma4(Windowed):
    """Its processor pads texts unless told not to, and resizes pictures to a number of tokens at most."""

    name = "Gemma 4"
    model_types = ("gemma4",)
    processors = ("Gemma4Processor",)
    types_keyword = "mm_token_type_ids"
    sharding_unsupported_reason = None
    engine_takes_features = False

    def image_tokens(self, processor: ProcessorMixin, height: int, width: int) -> int:
        return self.picture_tokens(processor.image_processor, height, width)

    def frame_tokens(self, processor: ProcessorMixin, height: int, width: int) -> int:
        return self.picture_tokens(processor.video_processor, height, width)

    def picture_tokens(self, part: Any, height: int, width: int) -> int:
        """Return the tokens of a picture of height x width pixels; part: the image processor, or that of videos."""
        size, pooling = part.patch_size, part.pooling_kernel_size
        if part.do_resize:
            most = part.max_soft_tokens * pooling**2
            height, width = get_aspect_ratio_preserving_size(height, width, size, most, pooling)
        return (height // size) * (width // size) // pooling**2

    def process(self, processor: ProcessorMixin, kind: str, medium: Any) -> Processed:
        text = [self.template_token(processor, kind)]
        if kind == "image":
            inputs = processor(text=text, images=[medium], **ALONE)
            keys, frames = ("pixel_values", "image_position_ids"), 1
        else:
            video = {"do_sample_frames": False, "video_metadata": [medium.metadata]}
            inputs = processor(text=text, videos=[medium.frames], videos_kwargs=video, **ALONE)
            keys, frames = ("pixel_values_videos", "video_position_ids"), len(medium.frames)
        fields = {key: inputs[key] for key in keys}
        replaced = inputs["text_replacement_offsets"][0][0]["replacement"]
        pooled = processor.image_processor.pooling_kernel_size**2
        patches = int((fields[keys[1]][0] >= 0).all(-1).sum())
        grid = torch.tensor([[frames, 1, patches // pooled]])
        return Processed([replaced], {**fields, f"{kind}_grid_thw": grid, "merge_size": 1})

    def video_pixels(self, processor: ProcessorMixin, clip: Tensor) -> Tensor:
        options = {"do_sample_frames": False, "return_tensors": "pt"}
        return processor.video_processor(videos=[clip], **options)["pixel_values_videos"]

    def forward_kwargs(self, visuals: Sequence[VisualInputs], *, pixels: bool = True) -> dict[str, Any]:
        media = super().forward_kwargs(visuals, pixels=pixels)
        grids = {kind: media.pop(f"{kind}_grid_thw", None) for kind in PIXELS}
        if not pixels:
            return {}
        if "pixel_values_videos" in media:
            media["num_frames_per_video"] = grids["video"][:, 0]
        return media

    def tower(self, backbone: nn.Module) -> nn.Module:
        return backbone.vision_tower

    def pixels_dtype(self, backbone: nn.Module) -> torch.dtype | None:
        return None  # scaled to [-1, 1] first

    def mergers(self, backbone: nn.Module) -> list[nn.Module]:
        return [backbone.embed_vision]

    def patches_per_token(self, config: Any) -> int:
        return config.vision_config.pooling_kernel_size**2

    def run_tower(self, backbone: nn.Module, visual: VisualInputs, kind: str) -> Tensor:
        if kind == "image":
            output = backbone.get_image_features(visual.pixel_values, visual.image_position_ids, return_dict=True)
        else:
            output = backbone.get_video_features(
                visual.pixel_values_videos,
                visual.video_position_ids,
                num_frames_per_video=visual.video_grid_thw[:, 0],
                return_dict=True,
            )
        return torch.cat(tuple(output.pooler_output))

    def suppressed_ids(self, processor: ProcessorMixin) -> list[int]:
        return sorted({*super().suppressed_ids(processor), processor.audio_token_id} - {None})

    def sees_both_ways(self, config: Any) -> bool:
        return config.get_text_config().use_bidirectional_attention == "vision"

    def engine_items(self, visual: VisualInputs) -> list[EngineItem]:
        items = []
        for kind in PIXELS:
            sizes = self.engine_sizes(visual, kind)
            if sizes:
                counts = visual.grid(kind)[:, 0].tolist()
                of_media = visual.pixels(kind).split(counts), getattr(visual, f"{kind}_position_ids").split(counts)
                items += [self.engine_pictures(kind, *medium) for medium in zip(sizes, *of_media, strict=True)]
        return items

    def engine_pictures(self, kind: str, tokens: int, pixels: Tensor, places: Tensor) -> EngineItem:
        """Return an image, or the frames of a video."""
        if kind == "image":
            return EngineItem(kind, kind, tokens, {}, {"pixel_values": pixels[0], "pixel_position_ids": places[0]}, {})
        frames = {"pixel_values_videos": pixels, "pixel_position_ids_videos": places}
        return EngineItem(kind, kind, tokens, frames, {}, {"video_frame_counts": torch.tensor(len(pixels))})

    def run_once(self, backbone: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        given = {kind: kwargs.pop(key) for kind, key in PIXELS.items() if kwargs.get(key) is not None}
        places = {kind: kwargs.pop(f"{kind}_position_ids") for kind in given}
        kwargs.pop("num_frames_per_video", None)
        width = max(pixels.size(1) for pixels in given.values())
        pixels = [pad(value, (0, 0, 0, width - value.size(1))) for value in given.values()]
        padded = [pad(value, (0, 0, 0, width - value.size(1)), value=-1) for value in places.values()]
        features = backbone.get_image_features(torch.cat(pixels), torch.cat(padded), return_dict=True).pooler_output
        parts = iter(features)
        outputs = {kind: self.encoder_output(backbone, [*islice(parts, len(given[kind]))]) for kind in given}
        return {**kwargs, "mm_encoder_outputs": outputs}

    def run_empty(self, backbone: nn.Module) -> Tensor:
        vision, tower = backbone.config.vision_config, backbone.vision_tower
        row = torch.arange(vision.pooling_kernel_size, device=tower.device)
        places = torch.cartesian_prod(row, row)[None]  # the patches of one token
        pixels = torch.zeros(*places.shape[:2], 3 * vision.patch_size**2, dtype=tower.dtype, device=tower.device)
        return torch.cat(tuple(backbone.get_image_features(pixels, places, return_dict=True).pooler_output))
