"""Families of vision-language models: one small class each, chosen by a model's type and a processor's class."""

from typing import Any

from torch import nn

from .family import EngineItem, Family, Processed
from .gemma3 import Gemma3
from .gemma4 import Gemma4
from .glm4v import Glm4v
from .internvl import InternVL
from .qwen3_vl import Qwen3VL
from .qwen_vl import QwenVL
from .smolvlm import SmolVLM

FAMILIES: tuple[Family, ...] = (QwenVL(), Qwen3VL(), InternVL(), SmolVLM(), Glm4v(), Gemma4(), Gemma3())
"""The families whose prompts are prepared here."""
TEXT_ONLY = Family()
"""Answers for every other model, of which only text is read."""
TYPES = tuple({family.types_keyword for family in FAMILIES} - {None})
"""Keywords under which models take the token types (B,S) of prompts with media."""


def family_of(model: nn.Module) -> Family:
    """Return the family of a transformers model without wrappers, by its `config.model_type`; `TEXT_ONLY` for others."""
    model_type = model.config.model_type
    return next((family for family in FAMILIES if model_type in family.model_types), TEXT_ONLY)


def family_of_processor(processor: Any) -> Family | None:
    """Return the family of a processor by its class or one that it inherits from, or None."""
    classes = {base.__name__ for base in type(processor).__mro__}
    return next((family for family in FAMILIES if classes & set(family.processors)), None)


def family_of_run(model: nn.Module, processor: Any) -> Family | None:
    """Return the family of a model without wrappers and of its processor, or None for a processor of no family.

    Errors: ValueError for a processor of another family than the model's.
    """
    family = family_of_processor(processor)
    if family not in (None, family_of(model)):
        raise ValueError(
            f"The model is a {model.config.model_type}, and a {type(processor).__name__} prepares prompts for {family.name}. Pass the "
            "model's own processor as processing_class."
        )
    return family


def supported() -> str:
    """Return the names of the families, for messages."""
    return ", ".join(family.name for family in FAMILIES)


__all__ = [
    "FAMILIES",
    "TEXT_ONLY",
    "TYPES",
    "EngineItem",
    "Family",
    "Processed",
    "family_of",
    "family_of_processor",
    "family_of_run",
    "supported",
]
