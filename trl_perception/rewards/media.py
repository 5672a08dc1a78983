"""The images and videos of a completion's prompt, for rewards that use them."""

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
    """Return the media blocks of each prompt in the order in which the model sees them; empty for a text prompt.

    A block is `{"type": "video", "video": path, ...}` or `{"type": "image", "image": path or picture, ...}`, with the
    sampling keys of the row. Pass the arguments of the reward function itself.

    Args: prompts: as the trainer passes them, with media filled in, or as rows hold them; columns: in the second case
        the columns `videos`, `images`, `video`, `image`, one value per prompt, are read, all others ignored.
    Raises: ValueError if placeholders and media differ in number.
    """
    given = {key: columns[key] for key in MEDIA_COLUMNS if columns.get(key) is not None}
    return [_media(prompt, {key: values[row] for key, values in given.items()}) for row, prompt in enumerate(prompts)]


def load_media(
    prompts: Sequence, settings: VideoSettings | None = None, **columns: Any
) -> list[list[VideoClip | Image.Image]]:
    """Decode the same media: a video to a `VideoClip` (frames, their times), an image to PIL, upright and not resized.

    Each distinct medium is decoded once for all completions of its prompt and cached for the next call, up to 256 MiB.
    The results are shared: do not write to them.

    Args: settings: how videos are sampled and resized, `VideoSettings()` by default; the keys of a block override them.
        These are not the trainer's settings: choose the few small frames that the reward needs.
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
    # The trainer's prompts hold their media (or why they are left out), so the columns must not be used again.
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
