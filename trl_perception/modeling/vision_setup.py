"""What is set up on a model with a vision tower before it is wrapped."""

from torch import nn

from .patch_embedding import project_patches
from .positions import apply_position_rule
from .segment_attention import batch_segments


def set_up_vision(model: nn.Module, position_rule: str = "released") -> None:
    """Apply a rule of positions (see [`apply_position_rule`]), [`project_patches`] and [`batch_segments`] before wrapping."""
    apply_position_rule(model, position_rule)
    project_patches(model)
    batch_segments(model)
