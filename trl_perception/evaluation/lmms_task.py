"""Our rows as a task of lmms-eval: functions that `recipes/lmms_eval/rows.yaml` names. Nothing of lmms-eval is imported."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ..media import fill_media, media_blocks, media_columns
from ..rewards import accuracy_reward, format_reward


def doc_to_messages(doc: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the row's conversation in lmms-eval's format: blocks of type text, image or video, media under `url`."""
    messages = _filled(doc)
    return [
        {"role": message["role"], "content": [_block(block) for block in message["content"]]} for message in messages
    ]


def doc_to_visual(doc: Mapping[str, Any]) -> list:
    """Return the row's media in the order of the prompt: opened images, paths of videos."""
    return [_url(block) for block in media_blocks(_filled(doc))]


def doc_to_text(doc: Mapping[str, Any]) -> str:
    """Return the texts of the prompt, without media."""
    return "".join(block["text"] for message in _filled(doc) for block in message["content"] if block["type"] == "text")


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """{"accuracy", "format", "right"} of a row's completion: our rewards, and accuracy from 0.5 as 0 or 1."""
    columns = {key: [doc[key]] for key in ("solution", "problem_type", "options") if doc.get(key) is not None}
    (accuracy,) = accuracy_reward([doc["prompt"]], [results[0]], **columns)
    (in_format,) = format_reward([doc["prompt"]], [results[0]])
    return {"accuracy": accuracy, "format": in_format, "right": float(accuracy >= 0.5)}


def _filled(doc: Mapping[str, Any]) -> list[dict]:
    media = media_columns(doc)
    return fill_media(doc["prompt"], media["image"], media["video"])


def _block(block: Mapping[str, Any]) -> dict[str, Any]:
    return dict(block) if block["type"] == "text" else {"type": block["type"], "url": _url(block)}


def _url(block: Mapping[str, Any]) -> Any:
    medium = block[block["type"]]
    return Image.open(medium).convert("RGB") if block["type"] == "image" and isinstance(medium, str) else medium
