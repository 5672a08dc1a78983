"""Next-token distributions from hidden states, without a logits tensor for every position."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PretrainedConfig
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction
from trl.trainer.utils import maybe_gather_lm_head_ctx

VOCABULARY_TILE = 8192  # tokens of a head that are projected in float32 at a time


class Head(NamedTuple):
    """A language-model head: logits = cap(scale * (states @ weight.T + bias)), cap(x) = softcap * tanh(x / softcap) or x."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None
    scale: float = 1.0


def base_model(model: nn.Module) -> nn.Module:
    """The transformers model inside its wrappers (DDP, DeepSpeed, PEFT)."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_of(model: nn.Module) -> Head:
    """The current head of a model; with a disabled adapter, that of the base model."""
    model = base_model(model)
    module = model.get_output_embeddings()
    weight, bias = module.weight, getattr(module, "bias", None)
    if isinstance(weight, DTensor):  # FSDP2 shards parameters; the kernels take whole ones
        weight, bias = weight.full_tensor(), None if bias is None else bias.full_tensor()
    config = model.config.get_text_config()
    return Head(weight, bias, getattr(config, "final_logit_softcapping", None), logit_scale(config))


def logit_scale(config: PretrainedConfig) -> float:
    """What a model multiplies its logits by, under the names that TRL's fused head reads: 1 where it has none."""
    for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    scaling = getattr(config, "logits_scaling", None)
    if scaling is None:
        return 1.0
    return scaling if config.model_type == "hyperclovax" else 1 / scaling


def head_is_sharded(model: nn.Module) -> bool:
    """Whether a model's head is sharded (FSDP2, ZeRO-3), so that all processes must gather it together."""
    weight = base_model(model).get_output_embeddings().weight
    return isinstance(weight, DTensor) or hasattr(weight, "ds_id")


@torch.no_grad()
def gather_lm_head(model: nn.Module) -> Head:
    """A gathered copy of a sharded head, without gradient. Every process must call it."""
    head = head_of(model)
    with maybe_gather_lm_head_ctx(head.weight, head.bias):
        weight, bias = (None if part is None else part.detach().clone() for part in (head.weight, head.bias))
        copy = head._replace(weight=weight, bias=bias)
        _mark_as_gathered(copy, head)
    return copy


def log_probs(head: Head, states: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature): states (M,D) -> (M,N) float32, for the few positions that need it all.

    States and weights are taken in the type of the forward (autocast's, else the states'); their product is not rounded to
    it, as in TRL's divergence kernel: of bfloat16, whose steps near 20 are 0.125, the softmax would be another.
    """
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    with torch.autocast(device, enabled=False):
        states = states.to(dtype).float()
        tiles = head.weight.split(VOCABULARY_TILE)
        logits = torch.cat([states @ tile.to(dtype).float().T for tile in tiles], dim=-1)
    if head.bias is not None:
        logits = logits + head.bias.float()
    logits = head.scale * logits
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return torch.log_softmax(logits / temperature, dim=-1)


def divergence(
    student: Head, student_states: Tensor, teacher: Head, teacher_states: Tensor, *, mix: float, temperature: float
) -> Tensor:
    """Divergence of next-token distributions at each position, in tiles of the vocabulary; gradient to the student.

    mix 0: KL(teacher || student); 1: KL(student || teacher); between: generalised JSD, as TRL's DistillationTrainer.
    Vocabularies of different size are cut to the smaller one; the rest is padding.

    Errors: ValueError where a head that ZeRO-3 shards would have to be cut.
    Args:
        student_states: (...,D) hidden states before the head; teacher_states: (...,E).
    Returns: (...) float32, nats.
    """
    sizes = [getattr(head.weight, "ds_shape", head.weight.shape)[0] for head in (student, teacher)]
    student, teacher = (_cut(head, size, min(sizes)) for head, size in zip((student, teacher), sizes, strict=True))
    values, _ = ChunkedDivergenceFunction.apply(
        student_states.reshape(-1, student_states.size(-1)),
        student.weight,
        student.bias,
        teacher_states.reshape(-1, teacher_states.size(-1)),
        teacher.weight,
        teacher.bias,
        mix,
        temperature,
        student.scale,
        student.softcap,
        teacher.scale,
        teacher.softcap,
    )
    return values.view(student_states.shape[:-1])


def _cut(head: Head, size: int, smaller: int) -> Head:
    if size == smaller:
        return head
    if hasattr(head.weight, "ds_id"):
        raise ValueError(
            f"The student's head has {size} tokens and the teacher's {smaller}, and ZeRO-3 shards the one that would have to "
            "be cut. Use ZeRO-2 or FSDP2 (recipes/accelerate_configs), or a student whose head is not larger."
        )
    copy = head._replace(weight=head.weight[:smaller], bias=None if head.bias is None else head.bias[:smaller])
    _mark_as_gathered(copy, head)
    return copy


def _mark_as_gathered(copy: Head, head: Head) -> None:
    """TRL's kernels ask each weight under ZeRO-3 whether it is to be gathered; a copy of a gathered one is not."""
    for ours, theirs in ((copy.weight, head.weight), (copy.bias, head.bias)):
        if hasattr(theirs, "ds_status"):
            ours.ds_status = theirs.ds_status
