"""Gemma 3: pictures whose tokens see each other, and videos as rows of pictures."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import ProcessorMixin

from .family import Processed
from .pictures import FixedPictures
from .windows import Windowed


class Gemma3(Windowed, FixedPictures):
    """It has no video: the frames of a video are shown as images, one behind the other.

    The tokens of a picture see each other in both directions, in every layer.
    """

    name = "Gemma 3"
    model_types = ("gemma3",)
    processors = ("Gemma3Processor",)
    types_keyword = "token_type_ids"
    frames_are_images = True
    engine_takes_features = False

    def sees_both_ways(self, config: Any) -> bool:
        return True

    def template_token(self, processor: ProcessorMixin, kind: str) -> str:
        return processor.boi_token

    def placeholder_ids(self, processor: ProcessorMixin) -> dict[str, int]:
        return dict.fromkeys(("image", "video"), processor.tokenizer.image_token_id)

    def messages(self, messages: Any, frames: Sequence[int]) -> Any:
        counts = iter(frames)

        def pictures(block: Any) -> list:
            return [{"type": "image"}] * next(counts) if block.get("type") == "video" else [block]

        return [
            {**message, "content": [part for block in message["content"] for part in pictures(block)]}
            if isinstance(message["content"], list)
            else message
            for message in messages
        ]

    def process(self, processor: ProcessorMixin, kind: str, medium: Any) -> Processed:
        if kind == "image":
            return super().process(processor, kind, medium)
        frames = len(medium.frames)
        pixels = self.video_pixels(processor, medium.frames)
        return self.processed(processor, kind, [processor.full_image_sequence] * frames, pixels)

    def video_pixels(self, processor: ProcessorMixin, clip: Tensor) -> Tensor:
        return processor.image_processor(images=list(clip), do_pan_and_scan=False, return_tensors="pt")["pixel_values"]

    def engine_weight(self, config: Any, name: str, weight: Tensor) -> tuple[str, Tensor]:
        return name.replace("vision_tower.", "vision_tower.vision_model."), weight

    def type_kwargs(self, token_types: Tensor) -> dict[str, Tensor]:
        return super().type_kwargs(token_types.clamp(max=1))

    def patches_per_token(self, config: Any) -> int:
        vision = config.vision_config
        return (vision.image_size // vision.patch_size) ** 2 // config.mm_tokens_per_image
