"""Models with random weights: 1 M or 20 M parameters for a CPU, those of a 3B or 4B for a GPU, 7B and 32B to plan with."""

import torch
from transformers import AutoProcessor, ProcessorMixin, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from trl_perception.assets import model_path
from trl_perception.modeling import set_up_vision

# Sizes of Qwen2.5-VL-3B, -7B and -32B and of Qwen3-VL-4B ("4b") as published, and models of the first shape that a CPU can
# train.
SIZES = {
    "1m": {
        "text": {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
        },
        "vision": {
            "depth": 2,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "fullatt_block_indexes": [1],
        },
    },
    "20m": {
        "text": {
            "hidden_size": 384,
            "intermediate_size": 1024,
            "num_hidden_layers": 10,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "vocab_size": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]},
        },
        "vision": {
            "depth": 6,
            "hidden_size": 192,
            "intermediate_size": 512,
            "num_heads": 4,
            "fullatt_block_indexes": [2, 5],
        },
    },
    "3b": {
        "text": {
            "hidden_size": 2048,
            "intermediate_size": 11008,
            "num_hidden_layers": 36,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
    },
    "7b": {
        "text": {
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "vocab_size": 152064,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        "tied": False,
    },
    "32b": {
        "text": {
            "hidden_size": 5120,
            "intermediate_size": 27648,
            "num_hidden_layers": 64,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "vocab_size": 152064,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        "vision": {
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3456,
            "num_heads": 16,
            "fullatt_block_indexes": [7, 15, 23, 31],
        },
        "tied": False,
    },
    "4b": {
        "text": {
            "hidden_size": 2560,
            "intermediate_size": 9728,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "vocab_size": 151936,
        },
        "vision": {
            "depth": 24,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_heads": 16,
            "deepstack_visual_indexes": [5, 11, 17],
        },
    },
}


def random_model(
    size: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, attention: str = "sdpa", seed: int = 0
) -> tuple[Qwen2_5_VLForConditionalGeneration, ProcessorMixin]:
    """A Qwen2.5-VL with random weights, and the embedded model's processor, whose vocabulary it uses."""
    processor = AutoProcessor.from_pretrained(model_path("tiny"))
    ids = {name: processor.tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    pad, eos = processor.tokenizer.pad_token_id, processor.tokenizer.eos_token_id
    text = SIZES[size]["text"]
    config = Qwen2_5_VLConfig(
        text_config={
            **text,
            "max_position_embeddings": 32768,
            "max_window_layers": text["num_hidden_layers"],
            "bos_token_id": None,
            "eos_token_id": eos,
        },
        vision_config={
            **SIZES[size]["vision"],
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "window_size": 112,
            "out_hidden_size": text["hidden_size"],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=processor.tokenizer.convert_tokens_to_ids("<|vision_start|>"),
        pad_token_id=pad,
        eos_token_id=eos,
        tie_word_embeddings=SIZES[size].get("tied", True),
        attn_implementation=attention,
        dtype=dtype,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        model = Qwen2_5_VLForConditionalGeneration(config)
        torch.set_default_dtype(before)
    set_up_vision(model)
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = pad, eos
    return model, processor
