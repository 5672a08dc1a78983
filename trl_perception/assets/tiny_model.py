"""The tiny Qwen2.5-VL from nothing: tokenizer learned from given texts, processor, and a model with random weights."""

from collections.abc import Iterable

import torch
from tokenizers import AddedToken, pre_tokenizers
from transformers import (
    GenerationConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
)

PAD, EOS = "<|endoftext|>", "<|im_end|>"
SPECIAL_TOKENS = (
    PAD,
    "<|im_start|>",
    EOS,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
ANSWER_TAGS = ("<think>", "</think>", "<answer>", "</answer>")

MIN_PIXELS, MAX_PIXELS = 28 * 28, 224 * 224

# Qwen2.5-VL's turns and placeholders; no default system turn, which would be a third of a short prompt.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['content'] is string -%}
{{ message['content'] }}
{%- else -%}
{%- for block in message['content'] -%}
{%- if block['type'] == 'image' -%}
<|vision_start|><|image_pad|><|vision_end|>
{%- elif block['type'] == 'video' -%}
<|vision_start|><|video_pad|><|vision_end|>
{%- elif block['type'] == 'text' -%}
{{ block['text'] }}
{%- else -%}
{{ raise_exception("content type '" ~ block['type'] ~ "' is unknown; use text, image or video") }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def build_tokenizer(texts: Iterable[str], vocab_size: int = 640) -> Qwen2Tokenizer:
    """A byte-level BPE of at most `vocab_size` tokens with Qwen2's rules; any text survives the round trip (in NFC)."""
    others = [token for token in SPECIAL_TOKENS if token not in (PAD, EOS)]
    empty = Qwen2Tokenizer(
        unk_token=None,
        eos_token=EOS,
        pad_token=PAD,
        extra_special_tokens=others,
        padding_side="left",
        model_max_length=4096,
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = empty.train_new_from_iterator(texts, vocab_size - len(ANSWER_TAGS), initial_alphabet=alphabet)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ANSWER_TAGS])
    return tokenizer


def build_processor(tokenizer: Qwen2Tokenizer) -> Qwen2_5_VLProcessor:
    """Images and frames from 28x28 to 224x224 pixels keep their size where it is a multiple of 28."""
    size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=dict(size)),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=dict(size), cap_pixels_per_frame=False),
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: Qwen2Tokenizer, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """About 1.2 million random float32 weights: 2 vision blocks (one windowed, one full), 4 text layers with GQA."""
    token_id = tokenizer.convert_tokens_to_ids
    pad, eos = token_id(PAD), token_id(EOS)
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "max_window_layers": 4,
            "initializer_range": 0.04,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": pad,
            "eos_token_id": eos,
            "pad_token_id": pad,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 4,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 4,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "out_hidden_size": 128,
            "initializer_range": 0.04,
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        bos_token_id=pad,
        eos_token_id=eos,
        pad_token_id=pad,
        tie_word_embeddings=False,
        dtype="float32",
    )
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config = GenerationConfig(bos_token_id=pad, eos_token_id=eos, pad_token_id=pad)
    return model
