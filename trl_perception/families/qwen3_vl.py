"""Qwen3-VL and Qwen3.5, dense and with experts: a time before each temporal cell; in Qwen3-VL features of several depths."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ProcessorMixin
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from ..media.sampling import ClipLimits
from ..media.visual_inputs import VisualInputs
from .family import EngineItem
from .qwen_vl import GridFamily


class Qwen3VL(GridFamily):
    """Qwen3-VL adds features of earlier depths (deepstack) to its first decoder layers; Qwen3.5 has one depth."""

    name = "Qwen3-VL and Qwen3.5"
    model_types = ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe")
    processors = ("Qwen3VLProcessor",)
    boxes = dict.fromkeys(model_types, "0 to 1000 along either side")
    video_options = {**GridFamily.video_options, "cap_pixels_per_frame": False}  # noqa: RUF012

    def video_limits(self, processor: ProcessorMixin) -> ClipLimits:
        return ClipLimits(*super().video_limits(processor))

    def mergers(self, backbone: nn.Module) -> list[nn.Module]:
        return [backbone.visual.merger, *getattr(backbone.visual, "deepstack_merger_list", ())]

    def side_by_side(self, output: BaseModelOutputWithPooling) -> Tensor:
        depths = [output.pooler_output, *getattr(output, "deepstack_features", ())]
        return torch.cat([torch.cat(tuple(parts)) for parts in depths], dim=-1)

    def engine_weight(self, config: Any, name: str, weight: Tensor) -> tuple[str, Tensor]:
        if config.model_type != "qwen3_vl_moe" or ".experts." not in name:
            return name, weight
        return name, weight.transpose(1, 2).contiguous()  # (E,out,in) in transformers, (E,in,out) in checkpoints

    def engine_item(self, visual: VisualInputs, kind: str, index: int, rows: Tensor) -> EngineItem:
        item = super().engine_item(visual, kind, index, rows)
        return item._replace(lead=1) if kind == "video" else item  # the mark before the first cell

    def encoder_output(self, backbone: nn.Module, parts: Sequence[Tensor]) -> BaseModelOutputWithPooling:
        depths = len(self.mergers(backbone))
        if depths == 1:
            return super().encoder_output(backbone, parts)
        of_depths = list(zip(*(part.chunk(depths, dim=-1) for part in parts), strict=True))
        return BaseModelOutputWithDeepstackFeatures(pooler_output=of_depths[0], deepstack_features=of_depths[1:])
