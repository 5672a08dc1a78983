"""GLM-4.1V, GLM-4.5V and GLM-4.6V: a video is a row of images, with their placeholder, between the marks of a video."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import ProcessorMixin

from ..media.frames import cells_in_prompt_order
from ..media.sampling import ClipLimits
from ..media.visual_inputs import VisualInputs
from .family import EngineItem, PicturesOnly
from .qwen_vl import GridFamily


class Glm4v(PicturesOnly, GridFamily):
    """The model's own forward takes images or videos, not both; here the cells of a video enter it as images."""

    name = "GLM-4.1V, GLM-4.5V and GLM-4.6V"
    model_types = ("glm4v", "glm46v", "glm4v_moe")
    processors = ("Glm4vProcessor", "Glm46VProcessor")
    returns_router_logits = False

    def image_limits(self, processor: ProcessorMixin) -> tuple[int, int]:
        frames = processor.image_processor.temporal_patch_size  # an image counts as so many frames
        least, most = super().image_limits(processor)
        return -(-least // frames), most // frames

    def video_limits(self, processor: ProcessorMixin) -> ClipLimits:
        return ClipLimits(*super().video_limits(processor))

    def forward_kwargs(self, visuals: Sequence[VisualInputs], *, pixels: bool = True) -> dict[str, Any]:
        grids = [self.picture_grids(visual) for visual in visuals if visual.visual_tokens]
        media = super().forward_kwargs(visuals, pixels=pixels)
        return {**media, "image_grid_thw": torch.cat(grids)} if grids else media

    def picture_grids(self, visual: VisualInputs) -> Tensor:
        """Return the grids of a prompt's images and cells in the order of their tokens: (pictures, 3)."""
        grids = torch.stack([visual.grid(kind)[medium] for kind, medium in cells_in_prompt_order(visual)])
        grids[:, 0] = 1
        return grids

    def type_kwargs(self, token_types: Tensor) -> dict[str, Tensor]:
        return super().type_kwargs(token_types.clamp(max=1))

    def engine_sizes(self, visual: VisualInputs, kind: str) -> list[int]:
        grids, merged = visual.grid(kind), visual.merge_size**2
        return [] if grids is None else [h * w // merged for cells, h, w in grids.tolist() for _ in range(cells)]

    def engine_item(self, visual: VisualInputs, kind: str, index: int, rows: Tensor) -> EngineItem:
        grids = visual.grid(kind)
        grid = grids.repeat_interleave(grids[:, 0], dim=0)[index].clone()
        grid[0] = 1
        name = "pixel_values" if getattr(visual, f"{kind}_features") is None else "image_embeds"
        tokens = self.engine_sizes(visual, kind)[index]
        return EngineItem("image", kind, tokens, {name: rows}, {}, {"image_grid_thw": grid})
