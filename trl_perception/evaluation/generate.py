"""Generates completions of prepared prompts, in batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from ..families import family_of_processor
from ..media import PreparedPrompt
from ..modeling import forward_kwargs
from .settings import EvaluationSettings


@dataclass(frozen=True)
class Completion:
    """One completion: its text without special tokens, its ids including the end of turn, and whether it was cut at
    `max_new_tokens` before that end.
    """

    text: str
    ids: list[int]
    cut: bool


def generation_config(
    settings: EvaluationSettings, model: PreTrainedModel, processor: ProcessorMixin
) -> GenerationConfig:
    """Make a generation config from the settings; only the end-of-turn ids come from the checkpoint's own config.

    Penalties, temperatures and the like of a checkpoint would make its figures incomparable with those of training.
    Media placeholders belong to prompts and are never generated.
    """
    tokenizer = processor.tokenizer
    ends = model.generation_config.eos_token_id
    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=settings.sampling,
        eos_token_id=tokenizer.eos_token_id if ends is None else ends,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        suppress_tokens=family_of_processor(processor).suppressed_ids(processor),
    )
    if settings.sampling:
        config.update(temperature=settings.temperature, top_p=settings.top_p, top_k=settings.top_k)
    return config


@torch.inference_mode()
def complete(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompts: Sequence[PreparedPrompt],
    *,
    samples: int = 1,
    seed: int = 0,
) -> list[list[Completion]]:
    """Generate `samples` completions of each of B prompts, with the model's `generation_config`.

    Every pass completes the B prompts once, so memory does not grow with `samples`.

    Args:
        prompts: on any device, none left out.
        seed: of sampling. `generate` accepts no generator: the global one is seeded and then restored.
    """
    device, config = model.device, model.generation_config
    input_ids, attention_mask = _left_padded([prompt.input_ids for prompt in prompts], config.pad_token_id)
    width = input_ids.shape[1]
    visual = forward_kwargs(model, [prompt.visual for prompt in prompts], width, width)
    inputs = {"input_ids": input_ids.to(device), "attention_mask": attention_mask.to(device), **visual}
    ends = {config.eos_token_id} if isinstance(config.eos_token_id, int) else set(config.eos_token_id)
    completions: list[list[Completion]] = [[] for _ in prompts]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for _ in range(samples):
            generated = model.generate(**inputs)[:, width:].tolist()
            for of_row, ids in zip(completions, generated, strict=True):
                end = next((place for place, token in enumerate(ids) if token in ends), None)
                ids = ids if end is None else ids[: end + 1]
                of_row.append(Completion(processor.tokenizer.decode(ids, skip_special_tokens=True), ids, end is None))
    return completions


def _left_padded(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return token ids (B,P) and their mask (B,P) int, padded on the left."""
    width = max(map(len, rows))
    ids = [[pad] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)
