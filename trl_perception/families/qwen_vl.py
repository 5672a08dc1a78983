"""Qwen2-VL and Qwen2.5-VL: grids of patches, three position axes, two raw frames a temporal cell."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.vision_utils import get_vision_window_index

from ..media.requests import ProcessorSizes, SizeRule
from ..media.visual_inputs import FORWARD_KEYS, PIXELS, VisualInputs
from ..transfer import to_device
from .family import ALONE, EngineItem, Family, Processed


class GridFamily(Family):
    """Families whose processors describe media as grids of patches, and whose positions have three axes."""

    types_keyword = "mm_token_type_ids"
    sharding_unsupported_reason = None
    # Frames have their final size: nothing is sampled or resized by the processor.
    video_options: dict[str, Any] = {"do_sample_frames": False, "do_resize": False}  # noqa: RUF012

    def image_limits(self, processor: ProcessorMixin) -> Any:
        """Return (min, max) pixels of an image."""
        size = processor.image_processor.size
        return size["shortest_edge"], size["longest_edge"]

    def video_limits(self, processor: ProcessorMixin) -> Any:
        """Return (min, max) pixels of a frame, or of a whole clip."""
        size = processor.video_processor.size
        return size["shortest_edge"], size["longest_edge"]

    def sizes(self, processor: ProcessorMixin) -> ProcessorSizes:
        image, video = processor.image_processor, processor.video_processor
        return ProcessorSizes(
            image=SizeRule(image.patch_size * image.merge_size, self.image_limits(processor)),
            video=SizeRule(
                video.patch_size * video.merge_size, self.video_limits(processor), video.temporal_patch_size
            ),
        )

    def process(self, processor: ProcessorMixin, kind: str, medium: Any) -> Processed:
        text = [self.template_token(processor, kind)]
        if kind == "image":
            given = {"images": [medium], "images_kwargs": {"do_resize": False}}
        else:
            options = {**self.video_options, "video_metadata": [medium.metadata]}
            given = {"videos": [medium.frames], "videos_kwargs": options}
        inputs = processor(text=text, **ALONE, **given)
        fields = {key: torch.as_tensor(inputs[key]) for key in FORWARD_KEYS if key in inputs}
        replaced = inputs["text_replacement_offsets"][0][0]["replacement"]
        return Processed([replaced], {**fields, "merge_size": processor.image_processor.merge_size})

    def video_pixels(self, processor: ProcessorMixin, clip: Tensor) -> Tensor:
        inputs = processor.video_processor(videos=[clip], return_tensors="pt", **self.video_options)
        return inputs["pixel_values_videos"]

    def positions(self, model: nn.Module, prompt_ids: Tensor, visual: VisualInputs | None, total: int) -> Tensor:
        if visual is None or not visual.visual_tokens:
            return super().positions(model, prompt_ids, visual, total).expand(3, -1)
        types = torch.zeros(1, total, dtype=torch.long)
        types[0, : len(prompt_ids)] = visual.token_types
        media = {**self.type_kwargs(types), **self.forward_kwargs([visual], pixels=False)}
        ids = torch.zeros_like(types)  # positions depend on the types alone, and are computed on the host
        positions, _ = model.model.get_rope_index(ids, **media, attention_mask=torch.ones_like(ids))
        return to_device(positions[:, 0], prompt_ids.device)

    def tower(self, backbone: nn.Module) -> nn.Module:
        return backbone.visual

    def mergers(self, backbone: nn.Module) -> list[nn.Module]:
        return [backbone.visual.merger]

    def patches_per_token(self, config: Any) -> int:
        return config.vision_config.spatial_merge_size**2

    def run_tower(self, backbone: nn.Module, visual: VisualInputs, kind: str) -> Tensor:
        run, pixels = (
            backbone.get_image_features if kind == "image" else backbone.get_video_features,
            visual.pixels(kind),
        )
        return self.side_by_side(run(pixels, to_device(visual.grid(kind), pixels.device), return_dict=True))

    def side_by_side(self, output: BaseModelOutputWithPooling) -> Tensor:
        """Return the tower's output as features (tokens, depths * D)."""
        return torch.cat(tuple(output.pooler_output))

    def engine_item(self, visual: VisualInputs, kind: str, index: int, rows: Tensor) -> EngineItem:
        seconds = visual.second_per_grid_ts
        name = PIXELS[kind] if getattr(visual, f"{kind}_features") is None else f"{kind}_embeds"
        facts = {f"{kind}_grid_thw": visual.grid(kind)[index]}
        if kind == "video" and seconds is not None:
            facts["second_per_grid_ts"] = seconds[index]
        return EngineItem(kind, kind, self.engine_sizes(visual, kind)[index], {name: rows}, {}, facts)

    def run_once(self, backbone: nn.Module, kwargs: dict[str, Any]) -> dict[str, Any]:
        given = {kind: kwargs.pop(key) for kind, key in PIXELS.items() if kwargs.get(key) is not None}
        grids = {kind: kwargs[f"{kind}_grid_thw"] for kind in given}
        joined = torch.cat(list(given.values())), torch.cat(list(grids.values()))
        features = self.side_by_side(backbone.get_image_features(*joined, return_dict=True))
        merged = backbone.visual.spatial_merge_size**2
        parts = features.split([int(grid.prod(-1).sum()) // merged for grid in grids.values()])
        outputs = {kind: self.encoder_output(backbone, [part]) for kind, part in zip(grids, parts, strict=True)}
        return {**kwargs, "mm_encoder_outputs": outputs}

    def run_empty(self, backbone: nn.Module) -> Tensor:
        tower = backbone.visual
        side, projection = tower.spatial_merge_size, tower.patch_embed.proj
        width = projection.in_channels * torch.Size(projection.kernel_size).numel()
        pixels = torch.zeros(side**2, width, dtype=tower.dtype, device=tower.device)
        grid = torch.tensor([[1, side, side]], device=tower.device)
        return self.side_by_side(backbone.get_image_features(pixels, grid, return_dict=True))


class QwenVL(GridFamily):
    """Qwen2-VL and Qwen2.5-VL. Time advances on the first position axis, in Qwen2.5-VL with the seconds of a cell."""

    name = "Qwen2-VL and Qwen2.5-VL"
    model_types = ("qwen2_vl", "qwen2_5_vl")
    processors = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor")
    boxes = {"qwen2_vl": "0 to 1000 along either side", "qwen2_5_vl": "pixels of the resized image"}  # noqa: RUF012
    has_position_rules = True  # the cells of a video follow each other without text between them
    video_options = {**GridFamily.video_options, "cap_pixels_per_frame": False}  # noqa: RUF012

    def in_token_order(self, backbone: nn.Module, states: Tensor, visual: VisualInputs, kind: str) -> Tensor:
        tower = backbone.visual
        if not hasattr(tower, "window_size"):
            return states
        order, _ = get_vision_window_index(
            visual.grid(kind),
            spatial_merge_size=tower.spatial_merge_size,
            window_size=tower.window_size,
            patch_size=tower.patch_size,
        )
        return states[to_device(torch.argsort(order), states.device)]
