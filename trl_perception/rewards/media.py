"""The images and videos that a completion is about, for rewards that look at them."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from PIL import Image

from trl_perception.media import (
    MEDIA_COLUMNS,
    MEDIA_KINDS,
    MediaLoader,
    MediaRequest,
    VideoClip,
    VideoSettings,
    fill_media,
    media_blocks,
    media_columns,
)

CACHE_BYTES = 256 << 20  # of decoded media, kept for the next call


def media_of(prompts: Sequence, **columns: Any) -> list[list[dict[str, Any]]]:
    """The media blocks of each prompt in the order in which the model sees them; an empty list for a prompt of text.

    A block is `{"type": "video", "video": path, ...}` or `{"type": "image", "image": path or picture, ...}`, with the
    sampling keys that the row gave it. Call it with the arguments of the reward function itself.

    Args: prompts: as the trainer passes them, media in place, or as rows hold them; columns: then the columns
        `videos`, `images`, `video`, `image`, one value a prompt, are read, all others ignored.
    Raises: ValueError where placeholders and media differ in number.
    """
    given = {key: columns[key] for key in MEDIA_COLUMNS if columns.get(key) is not None}
    return [_media(prompt, {key: values[row] for key, values in given.items()}) for row, prompt in enumerate(prompts)]


def load_media(
    prompts: Sequence, settings: VideoSettings | None = None, **columns: Any
) -> list[list[VideoClip | Image.Image]]:
    """The same media decoded: a video as a `VideoClip` (frames, their times), an image as PIL, upright and whole.

    Each distinct medium is decoded once for all completions of its prompt and kept for the next call, up to 256 MiB.
    What is returned is shared: do not write to it.

    Args: settings: how videos are sampled and resized, `VideoSettings()` by default; what a block says itself wins.
        They are not the trainer's: choose the few small frames that the reward needs.
    Raises: MediaError for a medium that cannot be read.
    """
    blocks = media_of(prompts, **columns)
    settings = settings or VideoSettings()
    loaded = _loader().load([_request(block, settings) for of_prompt in blocks for block in of_prompt])
    for medium in loaded:
        if isinstance(medium, Exception):
            raise medium
    remaining = iter(loaded)
    return [[next(remaining) for _ in of_prompt] for of_prompt in blocks]


def _media(prompt: Any, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    if isinstance(prompt, str) or not prompt:
        return []
    contents = [message.get("content") for message in prompt]
    blocks = [block for content in contents if isinstance(content, list) for block in content if block]
    # The trainer's prompts hold their media (or say why they are left out); the columns are there as well, used up.
    used_up = blocks and not any(map(_is_placeholder, blocks))
    media = media_columns({} if used_up else columns)
    return list(media_blocks(fill_media(prompt, media["image"], media["video"])))


def _is_placeholder(block: Mapping[str, Any]) -> bool:
    return block.get("type") in MEDIA_KINDS and all(block.get(key) is None for key in (*MEDIA_KINDS, "url", "path"))


def _request(block: Mapping[str, Any], settings: VideoSettings) -> MediaRequest:
    if block["type"] == "image":
        return MediaRequest("image", block["image"])
    rates = {"source_fps": block["sample_fps"]} if "sample_fps" in block else {}
    return MediaRequest("video", block["video"], settings.override(block), **rates)


@cache
def _loader() -> MediaLoader:
    return MediaLoader(workers=2, cache_bytes=CACHE_BYTES)
