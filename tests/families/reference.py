"""References for the families that use neither our preparation nor our forwards: the processor and the model by themselves."""

from typing import Any

import torch
from torch import Tensor
from transformers.video_utils import VideoMetadata

from tests.families.parts import Tiny
from tests.families.rows import FPS, KINDS, TEXT
from trl_perception.media import PreparedPrompt

# Families whose own forward takes images or videos, not both.
NOT_BOTH = ("glm4v", "glm4v_moe", "glm46v", "smolvlm")


def video_kwargs(frames: int) -> dict[str, Any]:
    """What a processor is told of a clip at 2 frames a second, of which every frame is kept."""
    indices = list(range(frames))
    metadata = VideoMetadata(total_num_frames=frames, fps=FPS, frames_indices=indices, duration=frames / FPS)
    return {"do_sample_frames": False, "video_metadata": [metadata]}


def processor_inputs(
    tiny: Tiny, prompt: PreparedPrompt, kind: str, frames: list[Tensor] | None = None
) -> dict[str, Tensor]:
    """What the processor makes of a prompt's media in one call, for `tiny.model(**inputs)`; frames replace those of its clips."""
    clips = prompt.frames if frames is None else frames
    images, given = list(prompt.images), {}
    blocks: list[dict] = [{"type": medium} for medium in KINDS[kind]]
    if tiny.name == "gemma3":  # frames are images
        counts, shown, left = iter(map(len, clips)), iter(images), iter(clips)
        blocks = [
            block for b in blocks for block in [{"type": "image"}] * (next(counts) if b["type"] == "video" else 1)
        ]
        images = [part for m in KINDS[kind] for part in (list(next(left)) if m == "video" else [next(shown)])]
        clips = []
    messages = [{"role": "user", "content": [*blocks, {"type": "text", "text": TEXT}]}]
    text = tiny.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if clips:
        given = {"videos": list(clips), "videos_kwargs": video_kwargs(len(clips[0]))}
    if text.startswith(tiny.processor.tokenizer.bos_token or "no such token"):
        given["add_special_tokens"] = False
    inputs = tiny.processor(text=[text], images=images or None, return_tensors="pt", **given)
    return {name: value for name, value in inputs.items() if isinstance(value, Tensor) and name != "num_patches"}


def logits(
    tiny: Tiny, prompt: PreparedPrompt, kind: str, completion: Tensor, frames: list[Tensor] | None = None
) -> Tensor:
    """Logits (P+T,V) of prompt and completion by `model(**processor(...))`."""
    if kind == "both" and tiny.name in NOT_BOTH:
        return _logits_of_both(tiny, prompt, completion)
    inputs = processor_inputs(tiny, prompt, kind, frames)
    assert inputs["input_ids"][0].tolist() == prompt.input_ids
    with torch.no_grad():
        return tiny.model(**with_completion(inputs, completion)).logits[0]


def with_completion(inputs: dict[str, Tensor], completion: Tensor) -> dict[str, Tensor]:
    """The same inputs with a completion (T,) of text after the prompt."""
    ends = {"input_ids": completion[None], "attention_mask": torch.ones_like(completion)[None]}
    longer = {name: torch.cat([inputs[name], end], 1) for name, end in ends.items()}
    types = {name: inputs[name] for name in ("mm_token_type_ids", "token_type_ids") if name in inputs}
    longer |= {name: torch.cat([value, torch.zeros_like(completion)[None]], 1) for name, value in types.items()}
    return {**inputs, **longer}


def _logits_of_both(tiny: Tiny, prompt: PreparedPrompt, completion: Tensor) -> Tensor:
    """A clip, then an image: embeddings filled by hand with the features of either, each from a call of its own."""
    backbone = tiny.model.model
    clip = tiny.processor(
        text=[tiny.processor.video_token], videos=prompt.frames, videos_kwargs=video_kwargs(8), return_tensors="pt"
    )
    image = tiny.processor(text=[tiny.processor.image_token], images=prompt.images, return_tensors="pt")
    ids = torch.cat([torch.tensor(prompt.input_ids), completion])[None]
    places = (ids[0] == tiny.processor.image_token_id).nonzero()[:, 0]
    with torch.no_grad():
        if tiny.name == "smolvlm":
            parts = [backbone.get_image_features(one["pixel_values"], return_dict=True) for one in (clip, image)]
        else:
            parts = [
                backbone.get_video_features(clip["pixel_values_videos"], clip["video_grid_thw"], return_dict=True),
                backbone.get_image_features(image["pixel_values"], image["image_grid_thw"], return_dict=True),
            ]
        of_clip, of_image = (torch.cat(tuple(part.pooler_output)) for part in parts)
        embeddings = tiny.model.get_input_embeddings()(ids).clone()
        embeddings[0, places] = torch.cat([of_clip, of_image])
        positions = torch.arange(ids.size(1))[None]
        if tiny.name != "smolvlm":
            types = torch.zeros_like(ids)
            types[0, places[: len(of_clip)]], types[0, places[len(of_clip) :]] = 2, 1
            grids = {"video_grid_thw": clip["video_grid_thw"], "image_grid_thw": image["image_grid_thw"]}
            positions = backbone.get_rope_index(ids, mm_token_type_ids=types, **grids)[0]
        states = tiny.model.get_decoder()(inputs_embeds=embeddings, position_ids=positions).last_hidden_state
        return tiny.model.lm_head(states)[0]
