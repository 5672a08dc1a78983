"""SmolVLM2: an image is tiles, a video one picture a frame with its time before it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProcessorMixin

from ..media.visual_inputs import VisualInputs
from .pictures import FixedPictures


class SmolVLM(FixedPictures):
    """An image is tiles and the whole in small; a video is one picture a frame, after a sentence on its length."""

    name = "SmolVLM2"
    model_types = ("smolvlm",)
    processors = ("SmolVLMProcessor",)
    tower_name, merger_name = "vision_model", "connector"

    def picture_tokens(self, processor: ProcessorMixin) -> int:
        return processor.image_seq_len

    def tiles(self, processor: ProcessorMixin, height: int, width: int) -> int:
        return processor.image_processor.get_number_of_image_patches(height, width, {})[0]

    def video_pixels(self, processor: ProcessorMixin, clip: Tensor) -> Tensor:
        options = {"do_sample_frames": False, "return_tensors": "pt"}
        return processor.video_processor(videos=[clip], **options)["pixel_values"][0]

    def forward_kwargs(self, visuals: Sequence[VisualInputs], *, pixels: bool = True) -> dict[str, Any]:
        media = super().forward_kwargs(visuals, pixels=pixels)
        return {key: value[None] for key, value in media.items()}  # as one prompt, which needs no padding

    def features(self, backbone: nn.Module, pictures: Tensor) -> Tensor:
        return torch.cat(tuple(backbone.get_image_features(pictures[None], return_dict=True).pooler_output))

    def patches_per_token(self, config: Any) -> int:
        return config.scale_factor**2

    def engine_picture(self, pixels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        joined, facts = super().engine_picture(pixels)
        return {**joined, "pixel_attention_mask": torch.ones_like(pixels[:, 0], dtype=torch.bool)}, facts
