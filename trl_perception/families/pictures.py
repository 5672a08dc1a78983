"""Families whose processors make pictures of one size, each of the same number of tokens."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..media.visual_inputs import VisualInputs
from .family import ALONE, EngineItem, PicturesOnly, Processed


class FixedPictures(PicturesOnly):
    """Families whose processors make pictures (N,3,side,side): the tiles of an image, or the frames of a video."""

    tower_name, merger_name = "vision_tower", "multi_modal_projector"

    def picture_tokens(self, processor: ProcessorMixin) -> int:
        """Return the tokens of a picture."""
        return processor.image_seq_length

    def frame_tokens(self, processor: ProcessorMixin, height: int, width: int) -> int:
        return self.picture_tokens(processor)

    def image_tokens(self, processor: ProcessorMixin, height: int, width: int) -> int:
        return self.tiles(processor, height, width) * self.picture_tokens(processor)

    def tiles(self, processor: ProcessorMixin, height: int, width: int) -> int:
        """Return how many pictures the processor makes of an image."""
        return 1

    def process(self, processor: ProcessorMixin, kind: str, medium: Any) -> Processed:
        given = {"images": [medium]}
        if kind == "video":
            options = {"do_sample_frames": False, "video_metadata": [medium.metadata]}
            given = {"videos": [medium.frames], "videos_kwargs": options}
        inputs = processor(text=[self.template_token(processor, kind)], **given, **ALONE)
        replaced = inputs["text_replacement_offsets"][0][0]["replacement"]
        return self.processed(processor, kind, [replaced], inputs["pixel_values"].flatten(0, -4))

    def processed(self, processor: ProcessorMixin, kind: str, texts: list[str], pixels: Tensor) -> Processed:
        """Return pictures with their grid: a tile or a frame is a row of its tokens, and an image is one cell."""
        count, tokens = len(pixels), self.picture_tokens(processor)
        grid = [1, count, tokens] if kind == "image" else [count, 1, tokens]
        key = "pixel_values" if kind == "image" else "pixel_values_videos"
        return Processed(texts, {key: pixels, f"{kind}_grid_thw": torch.tensor([grid]), "merge_size": 1})

    def tower(self, backbone: nn.Module) -> nn.Module:
        return getattr(backbone, self.tower_name)

    def mergers(self, backbone: nn.Module) -> list[nn.Module]:
        return [getattr(backbone, self.merger_name)]

    def run_tower(self, backbone: nn.Module, visual: VisualInputs, kind: str) -> Tensor:
        return self.features(backbone, visual.pixels(kind))

    def features(self, backbone: nn.Module, pictures: Tensor) -> Tensor:
        """Return the features of pictures, (tokens, D)."""
        return backbone.get_image_features(pictures, return_dict=True).pooler_output.flatten(0, 1)

    def encoder_output(self, backbone: nn.Module, parts: Sequence[Tensor]) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=torch.cat(tuple(parts)))

    def merger_input(self, backbone: nn.Module, states: Tensor) -> Tensor:
        return states.unflatten(0, (-1, self.patches(backbone)))

    def patches(self, backbone: nn.Module) -> int:
        """Return the patches of a picture."""
        config = backbone.config.vision_config
        return (config.image_size // config.patch_size) ** 2

    def engine_sizes(self, visual: VisualInputs, kind: str) -> list[int]:
        grids = visual.grid(kind)
        return [] if grids is None else [width for cells, rows, width in grids.tolist() for _ in range(cells * rows)]

    def engine_item(self, visual: VisualInputs, kind: str, index: int, rows: Tensor) -> EngineItem:
        tokens = self.engine_sizes(visual, kind)[index]
        if getattr(visual, f"{kind}_features") is not None:
            return EngineItem("image", kind, tokens, {}, {"image_embeds": rows}, {})
        joined, facts = self.engine_picture(rows)
        return EngineItem("image", kind, tokens, joined, {}, facts)

    def engine_picture(self, pixels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return one picture (1,3,side,side) for the engine, and what it has to know of it."""
        return {"pixel_values": pixels}, {"num_patches": torch.tensor(1)}

    def run_once(self, backbone: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        given = {key: kwargs.pop(key) for key in ("pixel_values", "pixel_attention_mask") if key in kwargs}
        return {**kwargs, "mm_encoder_outputs": {"image": backbone.get_image_features(**given, return_dict=True)}}

    def run_empty(self, backbone: nn.Module) -> Tensor:
        tower, side = self.tower(backbone), backbone.config.vision_config.image_size
        height, width = side if isinstance(side, Sequence) else (side, side)
        return self.features(backbone, torch.zeros(1, 3, height, width, dtype=tower.dtype, device=tower.device))
