"""Loads the model to evaluate: a checkpoint, or a base model with a LoRA adapter."""

import hashlib
from pathlib import Path

import torch
from transformers import PreTrainedModel, ProcessorMixin

from ..assets import model_path
from ..assets.checkpoint import base_of, load_checkpoint
from ..families import family_of_processor, supported
from .settings import EvaluationSettings

WEIGHTS = (".safetensors", ".bin")


def load_model(settings: EvaluationSettings, device: torch.device) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load the model in evaluation mode on `device`, and its processor, or the adapter's own processor if it has one.

    An adapter is not merged: in bfloat16 weights it would be rounded.

    Errors: ValueError for a processor of no supported family.
    """
    model, processor = load_checkpoint(
        *base_and_adapter(settings),
        revision=settings.revision,
        trust_remote_code=settings.trust_remote_code,
        position_rule=settings.position_rule,
        dtype=settings.dtype,
        attn_implementation=settings.attn_implementation,
    )
    if family_of_processor(processor) is None:
        raise ValueError(
            f"{settings.model} has a {type(processor).__name__}. Evaluate a model of these families: {supported()}."
        )
    return model.to(device).eval(), processor


def base_and_adapter(settings: EvaluationSettings) -> tuple[str, str | None]:
    """Return the locations of the base model and the adapter; the adapter is None for a full checkpoint.

    Errors: ValueError for two adapters.
    """
    path = model_path(settings.model)
    base, adapter = base_of(path)
    if adapter is None:
        return path, settings.adapter
    if settings.adapter is not None:
        raise ValueError(
            f"{settings.model} is itself a LoRA adapter, and adapter is {settings.adapter}. Set model to the base model, "
            "or leave adapter out."
        )
    return model_path(base), adapter


def weights_digest(settings: EvaluationSettings) -> str | None:
    """Return a digest of names, sizes and times of local weight files, to detect weights that were overwritten later.

    Returns None if nothing is local.
    """
    folders = [Path(path) for path in base_and_adapter(settings) if path is not None and Path(path).is_dir()]
    files = sorted(file for folder in folders for file in folder.iterdir() if file.suffix in WEIGHTS)
    found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16] if found else None
