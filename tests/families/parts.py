"""What tiny models are made of: a vocabulary of bytes, chat templates, media, and random weights."""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
)

from trl_perception.assets.tiny_model import build_tokenizer

VOCABULARY = 420
TEXTS = [
    "What is the colour of the scene? Which comes first, red or green? The answer is in <answer> blue </answer>."
] * 8


@dataclass
class Tiny:
    """A family's model (float32, eval, random) and its processor (padding on the left)."""

    name: str
    model: PreTrainedModel
    processor: ProcessorMixin


# Media


def clip(frames: int, height: int, width: int, seed: int) -> torch.Tensor:
    """uint8 (F, 3, H, W): every frame has another colour in each quarter, and noise."""
    rng = np.random.default_rng(seed)
    quarters = rng.integers(0, 200, (frames, 3, 2, 2))
    pixels = quarters.repeat(-(-height // 2), axis=2)[:, :, :height].repeat(-(-width // 2), axis=3)[..., :width]
    return torch.from_numpy((pixels + rng.integers(0, 56, pixels.shape)).astype(np.uint8))


def picture(height: int, width: int, seed: int) -> Image.Image:
    """An RGB picture: one frame of a clip."""
    return Image.fromarray(clip(1, height, width, seed)[0].permute(1, 2, 0).numpy())


# Text


def template(turn: str, end: str, reply: str, before: str = "", **placeholders: str) -> str:
    """A chat template: `before`, then every message between `turn` and `end`, with a placeholder for each medium.

    `turn` is a Jinja expression of `role`; the others are plain text.
    """
    media = "".join(
        f"{{%- elif block['type'] == {kind!r} %}}{{{{- {text!r} }}}}" for kind, text in placeholders.items()
    )
    return (
        f"{{{{- {before!r} }}}}"
        "{%- for message in messages %}"
        "{%- set role = message['role'] %}"
        f"{{{{- {turn} }}}}"
        "{%- if message['content'] is string %}{{- message['content'] }}"
        "{%- else %}{%- for block in message['content'] %}"
        "{%- if block['type'] == 'text' %}{{- block['text'] }}"
        f"{media}"
        "{%- else %}{{- raise_exception('no block of type ' ~ block['type']) }}{%- endif %}"
        "{%- endfor %}{%- endif %}"
        f"{{{{- {end!r} }}}}"
        "{%- endfor %}"
        f"{{%- if add_generation_prompt %}}{{{{- {reply!r} }}}}{{%- endif %}}"
    )


def chatml(**placeholders: str) -> str:
    """Qwen's turns."""
    turn = "'<|im_start|>' ~ role ~ '\\n'"
    return template(turn, "<|im_end|>\n", "<|im_start|>assistant\n", **placeholders)


@cache
def backend():
    return build_tokenizer(TEXTS, VOCABULARY)._tokenizer


def tokenizer(pad="<|endoftext|>", eos="<|im_end|>", bos=None, others=(), **named) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer with a family's special tokens; `named` become attributes (`image_token`, ...)."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend(),
        pad_token=pad,
        eos_token=eos,
        bos_token=bos,
        add_bos_token=bos is not None,
        extra_special_tokens=named,
        padding_side="left",
        model_max_length=4096,
    )
    made.add_tokens([*others, *named.values()], special_tokens=True)
    return made


# Weights


def randomized(model: PreTrainedModel, starts: dict[str, float], seed: int = 0) -> PreTrainedModel:
    """Every matrix is normal with variance 1 / fan-in, every vector gets noise of 0.1 on its first value.

    Nothing stays 0 or 1, as projectors, position tables and layer scales start in some families.
    `starts` has first values by the end of a name.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.empty_like(parameter).normal_(generator=generator)
        if parameter.ndim < 2:
            first = next((value for end, value in starts.items() if name.endswith(end)), parameter.data)
            parameter.data = first + 0.1 * noise
        else:
            fan_in = math.prod(parameter.shape[1:]) if parameter.ndim > 3 else parameter.shape[-1]
            parameter.data = noise / math.sqrt(fan_in)
    return model.eval()


def build(
    name: str,
    processor: ProcessorMixin,
    model_type: str,
    text: dict,
    vision: dict,
    starts: dict[str, float] | None = None,
    **options,
) -> Tiny:
    """The model of a configuration whose token ids are the tokenizer's; the state of torch's generator stays."""
    words = processor.tokenizer
    ids = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id}
    config = AutoConfig.for_model(
        model_type,
        text_config={**text, "vocab_size": len(words), **ids},
        vision_config=vision,
        **{"tie_word_embeddings": False, **options},
    )
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32)
    randomized(model, starts or {})
    model.generation_config = GenerationConfig(**ids)
    return Tiny(name, model, processor)


def decoder(**changes) -> dict:
    """Four layers, grouped queries, heads of 16 values."""
    return {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 4096,
        "initializer_range": 0.1,
        **changes,
    }
