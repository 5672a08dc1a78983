"""Models of other families with random weights, of the sizes in `benchmarks.models`, and a prompt with one video for each."""

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from benchmarks.models import SIZES
from trl_perception.media import VisualInputs
from trl_perception.modeling import set_up_vision

TOKENS_A_CELL = 64
VIDEO_TOKEN = 5
# Position axes of every third frequency belong to one of time, height and width.
INTERLEAVED = {"rope_type": "default", "rope_theta": 1e6, "mrope_interleaved": True}


def _tower(size: str) -> dict[str, Any]:
    """Towers of Qwen3-VL and Qwen3.5: 256x256 pixels are 64 tokens."""
    vision = {key: value for key, value in SIZES[size]["vision"].items() if "indexes" not in key}
    width = SIZES[size]["text"]["hidden_size"]
    return {**vision, "patch_size": 16, "out_hidden_size": width, "num_position_embeddings": 256}


def _qwen3_vl(size: str, text: dict[str, Any]) -> dict[str, Any]:
    head = text.get("head_dim", text["hidden_size"] // text["num_attention_heads"])
    section = [head // 2 - 2 * (head // 6), head // 6, head // 6]
    text = {**text, "head_dim": head, "rope_parameters": {**INTERLEAVED, "mrope_section": section}}
    levels = SIZES[size]["vision"].get("deepstack_visual_indexes", [0, 1])
    return {"text_config": text, "vision_config": {**_tower(size), "deepstack_visual_indexes": levels}}


def _qwen3_5(size: str, text: dict[str, Any]) -> dict[str, Any]:
    """Three layers of four have linear attention, with as many heads of the same width as the fourth has."""
    heads = text["num_attention_heads"]
    head = text.get("head_dim", text["hidden_size"] // heads)
    linear = {f"linear_{kind}_head_dim": head for kind in ("key", "value")}
    linear |= {f"linear_num_{kind}_heads": heads for kind in ("key", "value")}
    rotated = head // 8  # pairs: a quarter of the head
    section = [rotated - 2 * (rotated // 3), rotated // 3, rotated // 3]
    rope = {**INTERLEAVED, "mrope_section": section, "partial_rotary_factor": 0.25}
    layers = -(-text["num_hidden_layers"] // 4) * 4
    text = {**text, **linear, "head_dim": head, "num_hidden_layers": layers, "rope_parameters": rope}
    return {"text_config": text, "vision_config": _tower(size)}


def _internvl(size: str, text: dict[str, Any]) -> dict[str, Any]:
    """Frames of 224x224 pixels are 64 tokens."""
    vision = SIZES[size]["vision"]
    tower = {
        "hidden_size": vision["hidden_size"],
        "num_hidden_layers": vision["depth"],
        "num_attention_heads": vision["num_heads"],
        "intermediate_size": vision["intermediate_size"],
        "image_size": [224, 224],
        "patch_size": [14, 14],
    }
    rope = {"rope_type": "default", "rope_theta": 1e6}
    head = text["hidden_size"] // text["num_attention_heads"]
    text = {**text, "model_type": "qwen3", "head_dim": head, "rope_parameters": rope}
    return {"text_config": text, "vision_config": tower, "image_seq_length": TOKENS_A_CELL}


FAMILIES = {"qwen3_vl": _qwen3_vl, "qwen3_5": _qwen3_5, "internvl": _internvl}


def family_model(family: str, size: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A model of a family with random weights, whose decoder and tower have the sizes of `SIZES[size]`."""
    text = {**SIZES[size]["text"], "max_position_embeddings": 32768, "pad_token_id": 0, "eos_token_id": 1}
    tokens = {"image_token_id": VIDEO_TOKEN if family == "internvl" else 4}
    if family != "internvl":
        tokens |= {"video_token_id": VIDEO_TOKEN, "vision_start_token_id": 6, "vision_end_token_id": 7}
    config = AutoConfig.for_model(
        family, **FAMILIES[family](size, text), **tokens, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype, attn_implementation="sdpa")
    set_up_vision(model)
    return model


def video_prompt(family: str, cells: int, generator: torch.Generator) -> tuple[Tensor, VisualInputs]:
    """Ids (P,) and visual inputs of a prompt with a video: a text token before each cell of 64 tokens, 15 tokens around."""
    before, after = (torch.randint(20, 500, (size,), generator=generator) for size in (8, 7))
    shown = torch.tensor([10] + [VIDEO_TOKEN] * TOKENS_A_CELL).repeat(cells)
    prompt = torch.cat([before, shown, after])
    if family == "internvl":
        pixels = torch.randn(cells, 3, 224, 224, generator=generator)
        grid, merge_size = torch.tensor([[cells, 8, 8]]), 1
    else:
        pixels = torch.randn(cells * 4 * TOKENS_A_CELL, 3 * 2 * 16 * 16, generator=generator)
        grid, merge_size = torch.tensor([[cells, 16, 16]]), 2
    types = (prompt == VIDEO_TOKEN).long() * 2
    return prompt, VisualInputs(
        "benchmark", types, pixel_values_videos=pixels, video_grid_thw=grid, merge_size=merge_size
    )
