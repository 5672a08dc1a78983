"""Next-token distributions from hidden states, without a logits tensor for every position."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from trl.kernels.chunked_divergence import ChunkedDivergenceFunction


class Head(NamedTuple):
    """A language-model head: logits = cap(states @ weight.T + bias), cap(x) = softcap * tanh(x / softcap) or x."""

    weight: Tensor
    bias: Tensor | None
    softcap: float | None


def base_model(model: nn.Module) -> nn.Module:
    """The transformers model inside its wrappers (DDP, DeepSpeed, PEFT)."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def head_of(model: nn.Module) -> Head:
    """The head of a model as it is now: with an adapter disabled, the base model's."""
    model = base_model(model)
    module = model.get_output_embeddings()
    weight, bias = module.weight, getattr(module, "bias", None)
    if isinstance(weight, DTensor):  # FSDP2 shards parameters; the kernels take whole ones
        weight, bias = weight.full_tensor(), None if bias is None else bias.full_tensor()
    return Head(weight, bias, getattr(model.config.get_text_config(), "final_logit_softcapping", None))


def log_probs(head: Head, states: Tensor, temperature: float) -> Tensor:
    """log softmax(logits / temperature): states (M,D) -> (M,N) float32, for the few positions that need it all."""
    logits = nn.functional.linear(states.to(head.weight.dtype), head.weight, head.bias).float()
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return torch.log_softmax(logits / temperature, dim=-1)


def divergence(
    student: Head, student_states: Tensor, teacher: Head, teacher_states: Tensor, *, mix: float, temperature: float
) -> Tensor:
    """Divergence of next-token distributions at each position, in tiles of the vocabulary; gradient to the student.

    mix 0: KL(teacher || student); 1: KL(student || teacher); between: generalised JSD, as TRL's DistillationTrainer.
    Vocabularies of different size are cut to the smaller one: what lies beyond is padding.

    Args:
        student_states: (...,D) hidden states before the head; teacher_states: (...,E).
    Returns: (...) float32, nats.
    """
    if len(student.weight) != len(teacher.weight):
        size = min(len(student.weight), len(teacher.weight))
        student, teacher = (
            head._replace(weight=head.weight[:size], bias=None if head.bias is None else head.bias[:size])
            for head in (student, teacher)
        )
    values, _ = ChunkedDivergenceFunction.apply(
        student_states.reshape(-1, student_states.size(-1)),
        student.weight,
        student.bias,
        teacher_states.reshape(-1, teacher_states.size(-1)),
        teacher.weight,
        teacher.bias,
        mix,
        temperature,
        1.0,
        student.softcap,
        1.0,
        teacher.softcap,
    )
    return values.view(student_states.shape[:-1])
