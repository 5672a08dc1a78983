"""Rows of every kind for the tiny models of the families, and their inputs by the processor itself."""

from typing import Any

from tests.families.parts import Tiny, clip, picture
from trl_perception.media import PreparedPrompt, PromptPreparer, VideoSettings

TEXT = "Which colour comes first?"
# Kinds of rows: the media of a prompt, in order.
KINDS = {
    "text": (),
    "image": ("image",),
    "images": ("image", "image"),
    "video": ("video",),
    "both": ("video", "image"),
}
SIZES = {"image": (84, 112), "video": (56, 84)}
FPS = 2.0


def media_of(kind: str, seed: int = 0) -> list[tuple[str, Any]]:
    """The media of a kind of row: pictures, and clips (F,3,H,W) of 8 frames at 2 frames a second."""
    made = {"image": lambda n: picture(*SIZES["image"], n), "video": lambda n: clip(8, *SIZES["video"], n)}
    return [(medium, made[medium](seed + number)) for number, medium in enumerate(KINDS[kind])]


def row(kind: str, seed: int = 0, text: str = TEXT) -> dict[str, Any]:
    """A dataset row with its media in the message."""
    blocks = [{"type": medium, medium: value} for medium, value in media_of(kind, seed)]
    for block in blocks:
        if block["type"] == "video":
            block["sample_fps"] = FPS
    return {"prompt": [{"role": "user", "content": [*blocks, {"type": "text", "text": text}]}]}


def preparer(tiny: Tiny) -> PromptPreparer:
    return PromptPreparer(tiny.processor, video_settings=VideoSettings(max_frames=8))


def prepared(tiny: Tiny, kind: str, seed: int = 0, text: str = TEXT) -> PreparedPrompt:
    (prompt,) = preparer(tiny)([row(kind, seed, text)])
    return prompt
