"""Rollout: the prompt of a group is read once, and its cache is repeated for the completions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import GenerationConfig

from ..media import VisualInputs, padded_token_types
from .attention import decoder_of, self_attentions, window_of
from .cache import CACHE
from .head import base_model
from .vision import media_kwargs


@contextmanager
def prefill_once(model: nn.Module, visuals: Sequence[VisualInputs] | None, repeats: int) -> Iterator[None]:
    """Context manager in which `model.generate(input_ids, attention_mask, generation_config=...)` prefills each prompt once.

    The media of the prompts are added here. Greedy decoding gives the same tokens as `repeats` prefills, and sampling
    draws the same random numbers for distributions that are equal up to rounding.

    Args:
        model: the policy without process wrappers, adapters on it or not.
        visuals: the visual inputs of B prompts, or None for a text model.
        repeats: G: rows i*G to i*G+G-1 are one prompt. 1 prefills every row.
    """
    generate = model.generate

    def shared(
        input_ids: Tensor, attention_mask: Tensor, generation_config: GenerationConfig, **inputs: Any
    ) -> Tensor | Any:
        every = repeats if input_ids.size(1) > 1 else 1  # of a single token there is nothing to read ahead
        once = {"input_ids": input_ids[::every], "attention_mask": attention_mask[::every]}
        once.update(_media(model, None if visuals is None else visuals[::every], input_ids))
        if every == 1:
            return generate(**once, generation_config=generation_config, **inputs)
        cache = _prefill(generate, once, generation_config)
        cache.batch_repeat_interleave(every)
        _repeat_rope_deltas(model, every)
        return generate(
            input_ids=input_ids,
            attention_mask=attention_mask,
            generation_config=generation_config,
            **{CACHE: cache},
            **inputs,
        )

    model.generate = shared
    try:
        yield
    finally:
        del model.generate


def shared_prefill_unsupported_reason(model: nn.Module, generation_config: GenerationConfig) -> str | None:
    """Returns the reason why a prompt's cache cannot be repeated for its completions, or None."""
    decoder = decoder_of(model)
    attentions = self_attentions(decoder)
    if len(attentions) < len(decoder.layers):
        return f"{len(decoder.layers) - len(attentions)} decoder layers keep another state than keys and values"
    if any(window_of(module) for module in attentions.values()):
        return "some decoder layers attend to a sliding window"
    if generation_config.cache_implementation or generation_config.use_cache is False:
        return "generation_kwargs ask for another cache"
    if (generation_config.num_beams or 1) > 1:
        return "generation_kwargs ask for beams, which repeat the prompt themselves"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return f"{model.active_peft_config.peft_type} puts virtual tokens before each row"
    return None


def _prefill(generate: Callable, inputs: dict[str, Any], generation_config: GenerationConfig) -> Any:
    """The cache of all prompt tokens but the last."""
    one_token = GenerationConfig(
        max_new_tokens=1,
        do_sample=False,
        use_cache=True,
        return_dict_in_generate=True,
        pad_token_id=generation_config.pad_token_id,
        bos_token_id=generation_config.bos_token_id,
        eos_token_id=generation_config.eos_token_id,
    )
    cache = generate(**inputs, generation_config=one_token)[CACHE]
    cache.crop(-1)
    return cache


def _media(model: nn.Module, visuals: Sequence[VisualInputs] | None, input_ids: Tensor) -> dict[str, Any]:
    media = {} if visuals is None else media_kwargs(model, visuals)
    if media:
        width = input_ids.size(1)
        media["mm_token_type_ids"] = padded_token_types(visuals, width, width).to(input_ids.device)
    return media


def _repeat_rope_deltas(model: nn.Module, repeats: int) -> None:
    """The models of the Qwen-VL families continue a cache at  index + rope_deltas,  one for each row."""
    backbone = getattr(base_model(model), "model", None)
    if getattr(backbone, "rope_deltas", None) is not None:
        backbone.rope_deltas = backbone.rope_deltas.repeat_interleave(repeats, dim=0)
