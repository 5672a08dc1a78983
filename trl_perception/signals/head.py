"""Next-token distributions from hidden states, without a logits tensor for every position."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction


def base_model(model: nn.Module) -> nn.Module:
    """The transformers model inside its wrappers (DDP, DeepSpeed, PEFT)."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def log_probs(model: nn.Module, states: Tensor, temperature: float) -> Tensor:
    """log softmax(head(states) / temperature): states (M,D) -> (M,N) float32, for the few positions that need it all."""
    model = base_model(model)
    logits = model.get_output_embeddings()(states).float()
    softcap = _softcap(model)
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(logits / temperature, dim=-1)


def divergence(
    student: nn.Module,
    student_states: Tensor,
    teacher: nn.Module,
    teacher_states: Tensor,
    *,
    mix: float,
    temperature: float,
) -> Tensor:
    """Divergence of next-token distributions at each position, in tiles of the vocabulary; gradient to the student.

    mix 0: KL(teacher || student); 1: KL(student || teacher); between: generalised JSD, as TRL's DistillationTrainer.
    Vocabularies of different size are cut to the smaller one: what lies beyond is padding.

    Args:
        student_states: (...,D) hidden states before the head; teacher_states: (...,E).
    Returns: (...) float32, nats.
    """
    (weight, bias), (other_weight, other_bias) = _head(student), _head(teacher)
    if len(weight) != len(other_weight):
        size = min(len(weight), len(other_weight))
        weight, other_weight = weight[:size], other_weight[:size]
        bias, other_bias = (None if b is None else b[:size] for b in (bias, other_bias))
    values, _ = ChunkedDivergenceFunction.apply(
        student_states.reshape(-1, student_states.size(-1)),
        weight,
        bias,
        teacher_states.reshape(-1, teacher_states.size(-1)),
        other_weight,
        other_bias,
        mix,
        temperature,
        1.0,
        _softcap(base_model(student)),
        1.0,
        _softcap(base_model(teacher)),
    )
    return values.view(student_states.shape[:-1])


def _head(model: nn.Module) -> tuple[Tensor, Tensor | None]:
    head: Any = base_model(model).get_output_embeddings()
    weight, bias = head.weight, getattr(head, "bias", None)
    if isinstance(weight, DTensor):  # FSDP2 shards parameters; the kernel takes whole ones
        weight, bias = weight.full_tensor(), None if bias is None else bias.full_tensor()
    return weight, bias


def _softcap(model: nn.Module) -> float | None:
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)
