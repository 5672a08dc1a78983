"""What training needs of a model with experts."""

from torch import nn

from .head import base_model
from .vision import family_of_model


def require_router_logits(model: nn.Module) -> None:
    """Refuse the balancing loss of experts where the model's forward does not return what it is made of.

    Errors: ValueError with the setting to change.
    """
    if not family_of_model(model).returns_router_logits:
        raise ValueError(
            f"{type(base_model(model)).__name__} has experts, and its forward in transformers cannot return their router logits, of "
            "which the balancing loss is made. Set router_aux_loss_coef=0."
        )
