"""Conversations with media: every placeholder filled with its image or video, nothing left over."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MEDIA_KINDS = ("image", "video")
MEDIA_COLUMNS = ("image", "images", "video", "videos")
_TAGS = re.compile(r"(<image>|<video>)")


def media_columns(row: Mapping[str, Any]) -> dict[str, list]:
    """The media of a dataset row by kind: `{"image": [...], "video": [...]}`.

    Reads the list columns `images`, `videos` and the single columns `image`, `video`; None counts as absent.
    Errors: ValueError where both spellings of a kind hold something.
    """
    found = {}
    for kind in MEDIA_KINDS:
        single, several = row.get(kind), row.get(f"{kind}s")
        if single is not None and several:
            raise ValueError(
                f"The row has media in both columns '{kind}' and '{kind}s'. Keep one: '{kind}s' takes a list."
            )
        if single is not None:
            found[kind] = [single]
        elif several is None:
            found[kind] = []
        elif isinstance(several, (list, tuple)):
            found[kind] = [medium for medium in several if medium is not None]
        else:
            raise ValueError(
                f"Column '{kind}s' holds {type(several).__name__}, a list is wanted. Use '{kind}' for a single one."
            )
    return found


def fill_media(prompt: Sequence[Mapping[str, Any]], images: Sequence = (), videos: Sequence = ()) -> list[dict]:
    """Messages whose contents are lists of blocks, with every `image` and `video` block holding its medium.

    - Blocks lose keys whose value is None: Arrow gives every block of a column all keys of the others.
    - A block that names its own medium (`{"type": "video", "video": "a.mp4", "fps": 2}`) keeps it; one without takes
      the next medium of its column.
    - In a plain string the tags `<image>` and `<video>` are placeholders; media for which there is no placeholder
      anywhere go before the text of the first user message, images first, as TRL does.

    Errors: ValueError where placeholders and media differ in number.
    """
    columns = {"image": list(images), "video": list(videos)}
    messages = [
        {**_without_none(message), "content": _blocks(message.get("content"))}
        for message in prompt
        if message is not None
    ]
    free = dict.fromkeys(MEDIA_KINDS, 0)
    for block in media_blocks(messages):
        free[block["type"]] += block["type"] not in block

    unplaced = [kind for kind in MEDIA_KINDS if columns[kind] and not free[kind]]
    if unplaced and all(isinstance(message.get("content"), str) for message in prompt):
        first = next((message for message in messages if message["role"] == "user"), None)
        if first is None:
            raise ValueError(f"The prompt has {unplaced[0]}s but no user message to show them in.")
        added = [{"type": kind} for kind in unplaced for _ in columns[kind]]
        first["content"] = added + first["content"]
        free.update({kind: len(columns[kind]) for kind in unplaced})

    for kind in MEDIA_KINDS:
        if free[kind] != len(columns[kind]):
            raise ValueError(
                f"The prompt has {free[kind]} {kind} placeholder(s) without a medium of their own, but its column "
                f"'{kind}s' holds {len(columns[kind])}. Give one {kind} for each placeholder, in order, in the column "
                f"'{kind}s' or in the block itself ({{'type': '{kind}', '{kind}': ...}})."
            )
    remaining = {kind: iter(media) for kind, media in columns.items()}
    for message in messages:
        message["content"] = [
            {**block, block["type"]: next(remaining[block["type"]])}
            if block["type"] in MEDIA_KINDS and block["type"] not in block
            else block
            for block in message["content"]
        ]
    return messages


def media_blocks(messages: Sequence[Mapping[str, Any]]) -> Iterator[dict]:
    """The image and video blocks of a conversation, in the order in which the model sees them."""
    for message in messages:
        for block in message["content"]:
            if block["type"] in MEDIA_KINDS:
                yield block


def without_payloads(messages: Sequence[Mapping[str, Any]]) -> list[dict]:
    """The same conversation for logs and chat templates: media stay only where a path or URL names them."""
    return [
        {
            **message,
            "content": [
                {
                    key: value
                    for key, value in block.items()
                    if key not in MEDIA_KINDS or (isinstance(value, str) and not value.startswith("data:"))
                }
                for block in message["content"]
            ],
        }
        for message in messages
    ]


def _blocks(content: Any) -> list[dict]:
    """Content as a list of typed blocks without None values."""
    if content is None:
        return []
    if isinstance(content, str):
        parts = [part for part in _TAGS.split(content) if part]
        tagged = [{"type": part[1:-1]} if _TAGS.fullmatch(part) else {"type": "text", "text": part} for part in parts]
        return tagged or [{"type": "text", "text": ""}]
    return [_typed(_without_none(block)) for block in content if block is not None]


def _typed(block: dict) -> dict:
    """The block with its type spelled out and its medium, if any, under the name of its type."""
    kind = block.get("type") or next((kind for kind in (*MEDIA_KINDS, "text") if kind in block), None)
    if kind == "image_url":
        url = block["image_url"]
        block = {"image": url["url"] if isinstance(url, Mapping) else url}
        kind = "image"
    if kind not in (*MEDIA_KINDS, "text"):
        raise ValueError(
            f"A content block has type {block.get('type')!r} and keys {sorted(block)}; the type 'text', 'image' or "
            "'video' is wanted."
        )
    if kind in MEDIA_KINDS and kind not in block:
        for key in ("url", "path"):  # the spelling of transformers' chat templates
            if key in block:
                block = {**{k: v for k, v in block.items() if k != key}, kind: block[key]}
    return {**block, "type": kind}


def _without_none(mapping: Mapping[str, Any]) -> dict:
    return {key: value for key, value in mapping.items() if value is not None}
