"""Activation checkpointing: its two names in transformers, forwards without it, and where it loses a gradient."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def unify_checkpointing_names(config: Any, *, to_new: bool) -> None:
    """Give a trainer's configuration the same values under both names of activation checkpointing.

    transformers reads `activation_checkpointing` and `activation_checkpointing_kwargs`, and warns when it has to take them
    from the deprecated `gradient_checkpointing` and `gradient_checkpointing_kwargs`, which TRL and recipes set.

    Args: to_new: fill the new names where they are unset; False overwrites them with what TRL wrote to the old ones.
    """
    for suffix in ("", "_kwargs"):
        new = f"activation_checkpointing{suffix}"
        if not to_new or getattr(config, new) is None:
            setattr(config, new, getattr(config, f"gradient_checkpointing{suffix}"))


@contextmanager
def without_checkpointing(model: nn.Module) -> Iterator[None]:
    """Context manager under which no layer of the model is checkpointed: for forwards without backward."""
    checkpointed = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    for module in checkpointed:
        module.gradient_checkpointing = False
    try:
        yield
    finally:
        for module in checkpointed:
            module.gradient_checkpointing = True


def refuse_reentrant(config: Any, trainer: str) -> None:
    """Errors: ValueError for reentrant checkpointing, under which tapped queries and keys silently lose their gradient."""
    if config.gradient_checkpointing and (config.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        raise ValueError(
            f"{trainer} reads attention with gradient, which reentrant gradient checkpointing drops. Set "
            "gradient_checkpointing_kwargs={'use_reentrant': False}, or gradient_checkpointing=False (TRL forces the "
            "reentrant kind for adapters under DeepSpeed ZeRO-3; use ZeRO-2 or FSDP2 there)."
        )
