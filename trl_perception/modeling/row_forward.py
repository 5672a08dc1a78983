"""The plain forward: one row a completion, with the media of its prompt."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..media import VisualInputs
from .head import base_model
from .vision import family_of_model, forward_kwargs


def row_forward(
    model: nn.Module,
    *,
    visuals: Sequence[VisualInputs],
    completion_width: int,
    positions: Tensor | None = None,
    input_ids: Tensor,
    **inputs: Any,
) -> Any:
    """`model(input_ids, ...)` with the media of each row's prompt.

    Args:
        visuals: B visual inputs.
        completion_width: T.
        positions: (A,S) int for every row, where they are not the ones that the model takes itself.
        input_ids: (B,S), left-padded prompts and right-padded completions; `inputs` are passed to the model.
    """
    rows, total = input_ids.shape
    media = forward_kwargs(model, visuals, total - completion_width, total)
    if positions is not None:
        family, base = family_of_model(model), base_model(model)
        inputs["attention_mask"] = family.mask_at_positions(base, inputs["attention_mask"], positions[:, :total])
        of_rows = positions[:, None, :total].expand(-1, rows, -1)
        media["position_ids"] = of_rows if len(of_rows) > 1 else of_rows[0]
    return model(input_ids=input_ids, **media, **inputs)
