"""Which parameters see: the vision tower and the merger of a model."""

from torch import nn

TOWERS = ("visual", "vision_tower", "vision_model")
MERGERS = ("merger", "deepstack_merger_list", "multi_modal_projector", "connector", "embed_vision")


def part_of(name: str) -> str | None:
    """`"tower"` or `"merger"` for a parameter of the vision side, by its name; None for any other."""
    path = name.split(".")
    return "merger" if any(p in MERGERS for p in path) else "tower" if any(p in TOWERS for p in path) else None


def freeze_vision(model: nn.Module, *, tower: bool, merger: bool) -> None:
    """Take the vision encoder (`tower`) and the projector to language embeddings (`merger`) out of training.

    Adapters are kept out of frozen parts beforehand (see `adapters.py`).
    Errors: ValueError where the model has no such part.
    """
    found = {"tower": 0, "merger": 0}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        if part is None:
            continue
        found[part] += 1
        if tower if part == "tower" else merger:
            parameter.requires_grad_(False)
    for part, wanted in (("tower", tower), ("merger", merger)):
        if wanted and not found[part]:
            setting = "freeze_vision_tower" if part == "tower" else "freeze_merger"
            raise ValueError(f"{setting} is set, but {type(model).__name__} has no vision {part}. Unset {setting}.")


def require_trainable(model: nn.Module) -> None:
    """Refuse a model of which no weight trains, before an optimizer without parameters does. Errors: ValueError."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            "No weight of the model has requires_grad, so that nothing would be trained. Unfreeze some of its weights, pass a "
            "peft_config (use_peft: true), or unset freeze_vision_tower and freeze_merger."
        )
