"""Fills the placeholders of a conversation with its images and videos."""

import mimetypes
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

MEDIA_KINDS = ("image", "video")
"""Types of the content blocks that hold a medium."""

ID_COLUMNS = ("id", "problem_id", "question_id")
MEDIA_COLUMNS = ("image", "images", "video", "videos")
"""Columns of a dataset row that hold media."""

ROLES = ("system", "developer", "user", "assistant", "tool")
_NO_MEDIUM = (bool, int, float, complex, type(None))


def conversation(row: Mapping[str, Any]) -> list[dict]:
    """Return the messages of a row with its media filled in (see [`fill_media`]); empty for a plain string prompt.

    Errors: ValueError for a row without a prompt, a malformed message or medium, or media that do not fit the prompt.
    """
    prompt = row.get("prompt")
    if not prompt:
        raise ValueError(
            f"no prompt. Found columns {sorted(row)}; 'prompt' must hold messages ([{{'role': 'user', 'content': ...}}]) "
            "or, without media, a string."
        )
    media = media_columns(row)
    if not isinstance(prompt, str):
        return fill_media(prompt, media["image"], media["video"])
    if any(media.values()):
        raise ValueError(
            "A prompt with images or videos must be conversational: [{'role': 'user', 'content': ...}] instead of a string."
        )
    return []


def media_columns(row: Mapping[str, Any]) -> dict[str, list]:
    """Return the media of a dataset row by kind: `{"image": [...], "video": [...]}`.

    Reads the list columns `images`, `videos` and the single columns `image`, `video`; None counts as absent.
    Errors: ValueError if both columns of a kind hold media.
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
    """Return messages whose contents are lists of blocks, with every `image` and `video` block holding its medium.

    - Keys whose value is None are removed from blocks: Arrow gives every block of a column all keys of the others.
    - A block with its own medium (`{"type": "video", "video": "a.mp4", "fps": 2}`) keeps it; a block without one gets
      the next medium of its column.
    - In a plain string the tags `<image>` and `<video>` are placeholders if their column holds media, else text; media
      without any placeholder are placed before the text of the first user message, images first, as TRL does.

    Errors: ValueError for an invalid message, block or medium, an empty user message, or if placeholders and media
        differ in number.
    """
    columns = {"image": list(images), "video": list(videos)}
    messages = _messages(prompt, [kind for kind in MEDIA_KINDS if columns[kind]])
    free = dict.fromkeys(MEDIA_KINDS, 0)
    for block in media_blocks(messages):
        free[block["type"]] += block["type"] not in block

    unplaced = [kind for kind in MEDIA_KINDS if columns[kind] and not free[kind]]
    if unplaced and all(isinstance(message.get("content"), str) for message in prompt if message is not None):
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
        for block in message["content"]:
            if block["type"] in MEDIA_KINDS:
                _require_medium(block["type"], block[block["type"]])
    for number, message in enumerate(messages, 1):
        blocks = message["content"]
        if message["role"] == "user" and not any(b["type"] in MEDIA_KINDS or b["text"].strip() for b in blocks):
            raise ValueError(f"Message {number} (user) is empty; a text or a medium is wanted in its 'content'.")
    return messages


def is_readable(prompt: Any) -> bool:
    """Whether a prompt is text, or messages that [`fill_media`] accepts, regardless of their media."""
    if isinstance(prompt, str):
        return True
    try:
        return bool(_messages(prompt, ()))
    except ValueError:
        return False


def media_blocks(messages: Sequence[Mapping[str, Any]]) -> Iterator[dict]:
    """Yield the image and video blocks of a conversation, in the order in which the model sees them."""
    for message in messages:
        for block in message["content"]:
            if block["type"] in MEDIA_KINDS:
                yield block


def without_payloads(messages: Sequence[Mapping[str, Any]]) -> list[dict]:
    """Return the conversation for logs and chat templates: only media given by path or URL are kept."""
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


def _messages(prompt: Any, tagged: Sequence[str]) -> list[dict]:
    """Convert the contents of messages to blocks; tags of the kinds `tagged` are placeholders. Errors: ValueError."""
    if not isinstance(prompt, list | tuple):
        raise ValueError(f"The prompt is a {type(prompt).__name__}; a string or a list of messages is wanted.")
    tags = re.compile("|".join(f"(?:<{kind}>)" for kind in tagged) or r"(?!)")
    given = [message for message in prompt if message is not None]
    return [_message(number, message, tags) for number, message in enumerate(given, 1)]


def _message(number: int, message: Any, tags: re.Pattern) -> dict:
    """Convert the content of one message to blocks. Errors: ValueError."""
    if not isinstance(message, Mapping):
        raise ValueError(
            f"Message {number} is a {type(message).__name__}; {{'role': 'user', 'content': ...}} is wanted."
        )
    if message.get("role") not in ROLES:
        raise ValueError(
            f"Message {number} has the role {message.get('role')!r} and keys {sorted(map(str, message))}; its 'role' must be one "
            f"of {', '.join(ROLES)}, and its 'content' text or blocks."
        )
    content = message.get("content")
    if not isinstance(content, str | list | tuple | None):
        raise ValueError(
            f"The content of message {number} ({message['role']}) is a {type(content).__name__}; a text or a list of blocks "
            "([{'type': 'text', 'text': ...}]) is wanted."
        )
    return {**_without_none(message), "content": _blocks(content, tags)}


def _blocks(content: str | Sequence | None, tags: re.Pattern) -> list[dict]:
    """Convert content to a list of typed blocks without None values."""
    if isinstance(content, str):
        texts, kinds = tags.split(content), [tag[1:-1] for tag in tags.findall(content)]
        parts = [{"type": "text", "text": texts[0]}]
        for kind, text in zip(kinds, texts[1:], strict=True):
            parts += [{"type": kind}, {"type": "text", "text": text}]
        return [part for part in parts if part.get("text") != ""] or parts
    return [_typed(block) for block in content or () if block is not None]


def _typed(block: Any) -> dict:
    """Return the block with an explicit type and its medium, if any, under that name. Errors: ValueError."""
    if not isinstance(block, Mapping):
        raise ValueError(
            f"A content block is the {type(block).__name__} {str(block)[:80]!r}; {{'type': 'text', 'text': ...}} is wanted."
        )
    block = _without_none(block)
    kind = block.get("type") or next((kind for kind in (*MEDIA_KINDS, "text") if kind in block), None)
    if kind in ("image_url", "video_url") and kind in block:
        url, name = block[kind], kind.removesuffix("_url")
        others = {key: value for key, value in block.items() if key not in (kind, "type")}
        kind, block = name, {**others, name: url.get("url") if isinstance(url, Mapping) else url}
    if kind not in (*MEDIA_KINDS, "text"):
        raise ValueError(
            f"A content block has type {block.get('type')!r} and keys {sorted(block)}; the type 'text', 'image' or "
            "'video' is wanted."
        )
    if kind in MEDIA_KINDS and kind not in block:
        for key in ("url", "path"):  # the spelling of transformers' chat templates
            if key in block:
                block = {**{k: v for k, v in block.items() if k != key}, kind: block[key]}
    if kind == "text" and not isinstance(block.get("text"), str):
        raise ValueError(
            f"A text block holds {block.get('text')!r} and keys {sorted(block)}; text is wanted in its 'text'."
        )
    for other in {*MEDIA_KINDS, "text"} - {kind}:
        if other in block and not (isinstance(block[other], str) and not block[other]):
            raise ValueError(f"A block of type {kind!r} holds {other!r} as well; give each a block of its own.")
    return {**block, "type": kind}


def _require_medium(kind: str, medium: Any) -> None:
    """Reject a value that cannot be a medium. Errors: ValueError."""
    article = "An" if kind == "image" else "A"
    if isinstance(medium, _NO_MEDIUM) or (isinstance(medium, str) and not medium.strip()):
        raise ValueError(
            f"{article} {kind} is {medium!r}, of type {type(medium).__name__}; a path, URL, bytes or pixels are wanted."
        )
    if isinstance(medium, Mapping) and medium.get("path") is None and medium.get("bytes") is None:
        keys = sorted(map(str, medium))
        raise ValueError(f"{article} {kind} is a mapping with the keys {keys}; 'path' or 'bytes' must be set in it.")
    if not isinstance(medium, list | tuple):
        return
    if kind == "image":
        raise ValueError(
            f"An image is a list of {len(medium)}; one image is wanted. Several go into the column 'images'."
        )
    clip = next((part for part in medium if isinstance(part, str) and _is_video(part)), None)
    if clip is not None:
        raise ValueError(
            f"A video is a list that holds the clip {clip!r}: a list is the frames of one clip. Write the path alone, and "
            "several clips into the column 'videos'."
        )


def _is_video(path: str) -> bool:
    return (mimetypes.guess_type(path)[0] or "").startswith("video/")


def _without_none(mapping: Mapping[str, Any]) -> dict:
    return {key: value for key, value in mapping.items() if value is not None}
