"""Builds a model without weights: parameters on the meta device, frozen and adapted as in training."""

import torch
import transformers
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, PreTrainedModel
from trl import GRPOConfig, ModelConfig

from ..assets import model_path
from ..modeling.adapters import adapter_of, outside_frozen_parts
from ..modeling.freezing import freeze_vision
from .memory import World, weights_size


def policy_skeleton(config: GRPOConfig, model: ModelConfig) -> nn.Module:
    """Return the policy of a recipe; its parameters have shapes, dtypes and `requires_grad`, but no values."""
    frozen = {"tower": config.freeze_vision_tower, "merger": config.freeze_merger}
    policy = _skeleton(model.model_name_or_path, model.model_revision, model.dtype, config.trust_remote_code)
    if model.attn_implementation:
        policy.config._attn_implementation = model.attn_implementation  # set here so that it need not be installed
    adapter = outside_frozen_parts(adapter_of(model), **frozen)
    if adapter is not None:
        with torch.device("meta"):
            policy = get_peft_model(policy, adapter, autocast_adapter_dtype=False)
    if any(frozen.values()):
        freeze_vision(policy, **frozen)
    return policy


def other_models_size(config: GRPOConfig, model: ModelConfig, world: World) -> float:
    """Bytes of a reference model and a teacher on one process; ZeRO-3 and FSDP shard their weights."""
    size = 0.0
    if config.beta > 0 and not model.use_peft:
        size += weights_size(
            _skeleton(model.model_name_or_path, model.model_revision, model.dtype, config.trust_remote_code)
        )
    if name := getattr(config, "teacher_model_name_or_path", None):
        dtype = (config.teacher_model_init_kwargs or {}).get("dtype", model.dtype)
        teacher = _skeleton(name, config.teacher_model_revision, dtype, config.trust_remote_code)
        size += weights_size(teacher, 4 if config.teacher_load_in_4bit else 8 if config.teacher_load_in_8bit else None)
    return size / world.share("weights")


def quantised_bits(model: ModelConfig) -> int | None:
    """Return the bits of the language layers' weights if a recipe quantises them, else None."""
    return 4 if model.load_in_4bit else 8 if model.load_in_8bit else None


def _skeleton(
    name: str, revision: str | None, dtype: str | torch.dtype | None, trust_remote_code: bool
) -> PreTrainedModel:
    config = AutoConfig.from_pretrained(model_path(name), revision=revision, trust_remote_code=trust_remote_code)
    wanted = dtype if isinstance(dtype, torch.dtype) else getattr(torch, dtype or "float32", None)  # TRL's default
    with torch.device("meta"):
        return getattr(transformers, config.architectures[0])._from_config(config, dtype=wanted or config.dtype)
