"""Dataset rows to model inputs, for training and evaluating the tiny model."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import ProcessorMixin

from ..data import reference_completion
from ..media.images import read_image
from ..media.sampling import VideoSettings
from ..media.video import VideoClip, read_video
from .tiny_model import MAX_PIXELS, MIN_PIXELS

VIDEO_SETTINGS = VideoSettings(fps=4, max_frames=16, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)

Medium = VideoClip | Image.Image | None


def question(row: Mapping) -> str:
    """The text block of the row's prompt."""
    return row["prompt"][0]["content"][-1]["text"]


def load_medium(row: Mapping) -> Medium:
    """The row's clip or image, decoded; None for a row of text."""
    if row["videos"]:
        return read_video(row["videos"][0], VIDEO_SETTINGS, factor=28)
    return read_image(row["images"][0]) if row["images"] else None


def as_medium(pixels: np.ndarray | None) -> Medium:
    """What `load_medium` returns, of a clip (F,H,W,3) or an image (H,W,3) in memory."""
    if pixels is None or pixels.ndim == 3:
        return None if pixels is None else Image.fromarray(pixels)
    frames, fps = torch.from_numpy(pixels).permute(0, 3, 1, 2), VIDEO_SETTINGS.fps
    count = len(frames)
    return VideoClip(frames, torch.arange(count, dtype=torch.float64) / fps, fps, list(range(count)), count)


def encode_prompts(processor: ProcessorMixin, rows: Sequence[Mapping], media: Sequence[Medium]) -> dict[str, Tensor]:
    """Model inputs of B prompts, padded on the left: token ids (B,P), masks, and the patches of clips and images."""
    clips = [medium for medium in media if isinstance(medium, VideoClip)]
    images = [medium for medium in media if isinstance(medium, Image.Image)]
    visual = {"images": images} if images else {}
    if clips:
        visual["videos"] = [clip.frames for clip in clips]
        visual |= {"video_metadata": [clip.metadata for clip in clips], "do_sample_frames": False}
    texts = processor.apply_chat_template([row["prompt"] for row in rows], tokenize=False, add_generation_prompt=True)
    return processor(text=texts, padding=True, padding_side="left", return_tensors="pt", **visual)


def encode_examples(
    processor: ProcessorMixin, rows: Sequence[Mapping], media: Sequence[Medium]
) -> tuple[dict[str, Tensor], Tensor]:
    """Model inputs of B prompts followed by their reference completions, padded on the right to T tokens.

    Returns: inputs with token ids (B,P+T), and labels (B,T), -100 on padding.
    """
    inputs = encode_prompts(processor, rows, media)
    tokenizer = processor.tokenizer
    texts = [reference_completion(row) + tokenizer.eos_token for row in rows]
    completions = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
    ids, mask = completions["input_ids"], completions["attention_mask"]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], ids], dim=1)
    inputs["attention_mask"] = torch.cat([inputs["attention_mask"], mask], dim=1)
    inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(mask)], dim=1)
    return inputs, ids.masked_fill(mask == 0, -100)


def length_batches(lengths: Sequence[int], batch_size: int, generator: torch.Generator) -> Iterable[list[int]]:
    """Endless batches of row numbers alike in length: an epoch shuffles, sorts stretches of 8 batches, shuffles those.

    Source: the length-grouped sampler of transformers' Trainer.
    """
    stretch = 8 * batch_size
    while True:
        order = torch.randperm(len(lengths), generator=generator).tolist()
        batches = []
        for start in range(0, len(order), stretch):
            part = sorted(order[start : start + stretch], key=lengths.__getitem__)
            batches += [part[first : first + batch_size] for first in range(0, len(part), batch_size)]
        for number in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[number]
