"""What a worker of the engine does for the trainer: positions by the trainer's rule."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoModel

from ..media import MEDIA_KINDS
from ..media.visual_inputs import TOKEN_TYPE
from ..modeling.positions import RopeIndex
from .replaced import unsharded

if TYPE_CHECKING:
    from vllm.multimodal.inputs import MultiModalFeatureSpec

WORKER = f"{__name__}.PolicyWorker"
"""For vLLM's `worker_extension_cls`."""

Positions = Callable[[list[int], Sequence["MultiModalFeatureSpec"]], tuple[Tensor, int]]


class PolicyWorker:
    """Methods that vLLM adds to its workers (`worker_extension_cls`), for `collective_rpc`."""

    def use_position_rule(self, rule: str) -> None:
        """Let text behind a video start where `position_rule` says (see [`apply_position_rule`]); "released" is vLLM's own."""
        model = self.model_runner.get_model()
        vars(model).pop("get_mrope_input_positions", None)
        if rule == "released":
            return
        with unsharded(), torch.device("meta"):  # of the backbone its configuration is needed, and no weight
            backbone = AutoModel.from_config(model.config)
        model.get_mrope_input_positions = positions_by(RopeIndex(backbone, rule))

    def positions(self, prompt_ids: list[int], media: Sequence["MultiModalFeatureSpec"]) -> Tensor | None:
        """Return the positions (3,P+1) of a prompt and its first new token; None for models with one axis."""
        model = self.model_runner.get_model()
        if not hasattr(model, "get_mrope_input_positions"):
            return None
        positions, delta = model.get_mrope_input_positions(prompt_ids, media)
        return torch.cat([positions, torch.full_like(positions[:, :1], len(prompt_ids) + delta)], dim=1)


def positions_by(index: RopeIndex) -> Positions:
    """Return vLLM's `get_mrope_input_positions`, computed by a rule of the trainer."""

    def positions(prompt_ids: list[int], media: Sequence["MultiModalFeatureSpec"]) -> tuple[Tensor, int]:
        ids = torch.tensor([prompt_ids])
        if not media:
            return torch.arange(len(prompt_ids)).expand(3, -1), 0
        types, facts = torch.zeros_like(ids), {}
        for medium in sorted(media, key=lambda medium: medium.mm_position.offset):
            place = medium.mm_position
            part = types[0, place.offset : place.offset + place.length]
            part[slice(None) if place.is_embed is None else place.is_embed] = TOKEN_TYPE[medium.modality]
            for name in (*(f"{kind}_grid_thw" for kind in MEDIA_KINDS), "second_per_grid_ts"):
                if name in medium.data:
                    facts.setdefault(name, []).append(medium.data[name].data)
        found, deltas = index(ids, types, **{name: torch.stack(values) for name, values in facts.items()})
        return found[:, 0], int(deltas)

    return positions
