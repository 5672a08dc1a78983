"""Rollout: the prompt of a group is read once, and its completions share the cache."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import GenerationConfig

from ..families import TYPES
from ..media import VisualInputs
from .attention import attention_implementation
from .cache import CACHE
from .group_forward import packing_unsupported_reason
from .head import base_model
from .packed_attention import SPLIT, follow_packings
from .shared_prefix import share_prefix
from .vision import forward_kwargs


@contextmanager
def prefill_once(
    model: nn.Module, visuals: Sequence[VisualInputs] | None, repeats: int, at_once: int | None = None
) -> Iterator[None]:
    """Context manager in which `model.generate(input_ids, attention_mask, generation_config=...)` prefills each prompt once.

    The media of the prompts are added here. The completions of a prompt share its keys and values while they are decoded.
    Greedy decoding gives the same tokens as `repeats` prefills, and sampling draws the same random numbers for
    distributions that are equal up to rounding.

    Args:
        model: the policy without process wrappers, adapters on it or not.
        visuals: the visual inputs of B prompts, or None for a text model.
        repeats: G: rows i*G to i*G+G-1 are one prompt. 1 prefills every row.
        at_once: most completions that are generated together, in whole groups; None for all.
    """
    generate = model.generate
    if keys_once := shares_keys(model):
        follow_packings(attention_implementation(model))

    def of_rows(rows: slice, ids: Tensor, attention: Tensor, settings: GenerationConfig, **inputs: Any) -> Tensor:
        ids, attention, width = ids[rows], attention[rows], ids.size(1)
        own = None if visuals is None else visuals[rows]
        # All but the last token are read ahead; a medium that ends its prompt cannot be cut.
        ahead = width > 1 and not any(visual.token_types[-1:].any() for visual in own or ())
        every = repeats if ahead else 1
        prompts = {"input_ids": ids[::every], "attention_mask": attention[::every]}
        media = {} if own is None else forward_kwargs(model, own[::every], width, width)
        if every == 1:
            return generate(**prompts, **media, generation_config=settings, **inputs)
        of_tokens = (*prompts, *TYPES)
        prefixes = {key: value[:, :-1] if key in of_tokens else value for key, value in {**prompts, **media}.items()}
        cache = _prefill(generate, prefixes, settings)
        prompt_of = torch.arange(len(ids) // every, device=ids.device).repeat_interleave(every)
        share_prefix(cache, prompt_of, keys_once=keys_once)
        _set_rope_deltas(model, {**prompts, **media}, every)
        return generate(input_ids=ids, attention_mask=attention, generation_config=settings, **{CACHE: cache}, **inputs)

    def shared(
        input_ids: Tensor, attention_mask: Tensor, generation_config: GenerationConfig, **inputs: Any
    ) -> Tensor | Any:
        count = len(input_ids)
        size = count if at_once is None else max(repeats, at_once // repeats * repeats)
        parts = [
            of_rows(slice(first, first + size), input_ids, attention_mask, generation_config, **inputs)
            for first in range(0, count, size)
        ]
        return parts[0] if len(parts) == 1 else _joined(parts, generation_config.pad_token_id)

    model.generate = shared
    try:
        yield
    finally:
        del model.generate


def shared_prefill_unsupported_reason(model: nn.Module, generation_config: GenerationConfig) -> str | None:
    """Returns the reason why a prompt's cache cannot be repeated for its completions, or None."""
    if generation_config.cache_implementation or generation_config.use_cache is False:
        return "generation_kwargs ask for another cache"
    if (generation_config.num_beams or 1) > 1:
        return "generation_kwargs ask for beams, which repeat the prompt themselves"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return f"{model.active_peft_config.peft_type} puts virtual tokens before each row"
    return None


def shares_keys(model: nn.Module) -> bool:
    """Whether the decoder calls attention functions that can take the keys of a prompt once for its completions."""
    by_interface = base_model(model)._supports_attention_backend or packing_unsupported_reason(model) is None
    return attention_implementation(model) in SPLIT and by_interface


def _joined(parts: Sequence[Tensor], pad_token_id: int) -> Tensor:
    """(b,S_i) of each part -> (B,max S), padded on the right."""
    width = max(part.size(1) for part in parts)
    return torch.cat([pad(part, (0, width - part.size(1)), value=pad_token_id) for part in parts])


def _prefill(generate: Callable, inputs: dict[str, Any], generation_config: GenerationConfig) -> Any:
    """The cache of prompts; the token that is sampled after them is not in it."""
    one_token = GenerationConfig(
        max_new_tokens=1,
        do_sample=False,
        use_cache=True,
        return_dict_in_generate=True,
        pad_token_id=generation_config.pad_token_id,
        bos_token_id=generation_config.bos_token_id,
        eos_token_id=generation_config.eos_token_id,
    )
    return generate(**inputs, generation_config=one_token)[CACHE]


def _set_rope_deltas(model: nn.Module, inputs: dict[str, Any], repeats: int) -> None:
    """Models with several position axes continue a cache at  index + rope_deltas,  one for each row, of whole prompts."""
    backbone = getattr(base_model(model), "model", None)
    if getattr(backbone, "rope_deltas", None) is None:
        return
    if any(name.endswith("grid_thw") for name in inputs):
        own = (
            "input_ids",
            "attention_mask",
            "mm_token_type_ids",
            "image_grid_thw",
            "video_grid_thw",
            "second_per_grid_ts",
        )
        backbone.rope_deltas = backbone.get_rope_index(**{name: inputs[name] for name in own if name in inputs})[1]
    backbone.rope_deltas = backbone.rope_deltas.repeat_interleave(repeats, dim=0)
