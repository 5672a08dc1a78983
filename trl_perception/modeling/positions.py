"""Positions of text after a video."""

from typing import Any

import torch
from torch import Tensor, nn

from ..transfer import to_device
from .head import base_model
from .vision import family_of_model

POSITION_RULES = ("released", "transformers")
"""The rules that `apply_position_rule` takes."""


def apply_position_rule(model: nn.Module, rule: str = "released") -> None:
    """Bind a rule of positions to a Qwen2-VL or Qwen2.5-VL model, for every forward and `generate`.

    A medium of t x h x w cells (h, w after merging; s position steps between two temporal cells) that starts at position p
    ends at  e = p + max((t-1) s, h-1, w-1).  The text after it starts at

        released:      e + 1             as the released models were trained, and as vLLM and transformers 4 run them
        transformers:  p + max(h, w)     as transformers 5 runs them

    on all three axes. Both are the same for images, and for videos with (t-1) s < max(h, w). Under both, a completion
    starts after the last token of its prompt, in generation and in forwards.

    The rule is part of this model object and its copies, not of weights and saved files. A
    later call with another rule replaces it. Models of other families are unchanged.

    Args:
        model: in its wrappers (PEFT, DDP, FSDP, DeepSpeed) or not.
        rule: "released" or "transformers".
    Errors: ValueError for another rule.
    """
    check_position_rule(rule)
    backbone = getattr(base_model(model), "model", None)
    if family_of_model(model).has_position_rules:
        backbone.get_rope_index = RopeIndex(backbone, rule)


def position_rule_of(model: nn.Module) -> str | None:
    """The rule that was applied to a model, or None."""
    index = getattr(getattr(base_model(model), "model", None), "get_rope_index", None)
    return index.rule if isinstance(index, RopeIndex) else None


def check_position_rule(rule: str) -> None:
    """Errors: ValueError for a rule that is none of `POSITION_RULES`."""
    if rule not in POSITION_RULES:
        raise ValueError(f"position_rule is {rule!r}; 'released' or 'transformers' wanted.")


class RopeIndex:
    """`get_rope_index` of one backbone under a rule (see [`apply_position_rule`]).

    Takes what the backbone's own one takes. Returns positions (3,B,S) int, 0 on padding, and rope_deltas (B,1) int: the
    position of a row's next token minus its number of tokens.
    """

    def __init__(self, backbone: nn.Module, rule: str):
        self.backbone, self.rule = backbone, rule

    def __call__(
        self,
        input_ids: Tensor,
        mm_token_type_ids: Tensor,
        attention_mask: Tensor | None = None,
        **media: Any,
    ) -> tuple[Tensor, Tensor]:
        device = input_ids.device  # computed on the host, which reads types and grids token by token
        input_ids, mm_token_type_ids = input_ids.cpu(), mm_token_type_ids.cpu()
        media = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in media.items()}
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.cpu()
        # One more token of text: the first one of a completion.
        ids, types, mask = (
            torch.cat([values, values.new_full((len(values), 1), last)], dim=1)
            for values, last in ((input_ids, 0), (mm_token_type_ids, 0), (mask, 1))
        )
        own = type(self.backbone).get_rope_index
        positions, _ = own(self.backbone, input_ids=ids, mm_token_type_ids=types, attention_mask=mask, **media)
        if self.rule == "released":
            for row, kept in enumerate(mask.bool()):
                positions[:, row, kept] = behind_each_other(positions[:, row, kept], types[row, kept])
        deltas = positions[0, :, -1:] - (mask.sum(1, keepdim=True) - 1)
        return to_device(positions[:, :, :-1].contiguous(), device), to_device(deltas, device)


def behind_each_other(positions: Tensor, types: Tensor) -> Tensor:
    """The positions (3,S) of a row with every run of tokens of one type (S,) moved behind the largest position before it."""
    sizes = torch.unique_consecutive(types, return_counts=True)[1].tolist()
    moved, start = [], 0
    for run in positions.split(sizes, dim=1):
        moved.append(run - run.min() + start)
        start = moved[-1].max() + 1
    return torch.cat(moved, dim=1)
