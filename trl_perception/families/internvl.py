"""InternVL 3 and 3.5: tiles and frames in one tensor, one placeholder for both."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProcessorMixin

from .pictures import FixedPictures


class InternVL(FixedPictures):
    """An image is tiles of one size and a thumbnail; a video is one tile a frame."""

    name = "InternVL 3 and 3.5"
    model_types = ("internvl",)
    processors = ("InternVLProcessor",)
    returns_router_logits = False

    def tiles(self, processor: ProcessorMixin, height: int, width: int) -> int:
        return processor.image_processor.get_number_of_image_patches(height, width, {"crop_to_patches": True})

    def video_pixels(self, processor: ProcessorMixin, clip: Tensor) -> Tensor:
        options = {"do_sample_frames": False, "return_tensors": "pt"}
        return processor.video_processor(videos=[clip], **options)["pixel_values_videos"][0]

    def merger_input(self, backbone: nn.Module, states: Tensor) -> Tensor:
        return states  # the projector takes each token by itself

    def patches_per_token(self, config: Any) -> int:
        return round(1 / config.downsample_ratio) ** 2

    def engine_picture(self, pixels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # The engine wants the placeholder's id with every picture, and uses those of the prompt.
        return {"pixel_values": pixels}, {"image_num_patches": torch.tensor(1), "image_token_id": torch.tensor(0)}
