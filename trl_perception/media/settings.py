"""Sampling and size of one medium: the settings of a run, and their overrides in a message block."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

MIN_FRAMES = 2  # a clip is sampled in pairs of frames
# Keys of a message block that name the medium or its source rate rather than sampling and size.
BLOCK_KEYS = ("type", "video", "image", "text", "sample_fps", "raw_fps")
IMAGE_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
_SECONDS = ("fps", "video_start", "video_end")  # may be fractional


@dataclass(frozen=True)
class VideoSettings:
    """Settings to cut, sample and resize a clip. The names are those of a qwen-vl-utils message block.

    Args:
        fps: frames kept per second of video; not used where nframes is set.
        nframes: frames kept of the whole range, rounded to an even number; None samples by fps.
        min_frames, max_frames: bounds on the number of frames sampled by fps. Frame lists and arrays are not sampled
            by fps, but keep to max_frames (or nframes) as well.
        min_pixels, max_pixels: bounds on the pixels (height * width) of one resized frame. max_pixels above
            768 * factor**2 counts as 768 * factor**2, as in qwen-vl-utils.
        total_pixels: pixels that the frames of the whole clip share, two frames counting as one.
        video_start, video_end: seconds from the first frame of the file; None means its start, its end.
        resized_height, resized_width: pixels, rounded to multiples of the factor; they replace the pixel bounds.
    Raises: ValueError for a value that is not a number or out of its bounds, min_pixels > max_pixels, video_start >=
        video_end, or one of resized_* without the other.
    """

    fps: float = 2.0
    nframes: int | None = None
    min_frames: int = 4
    max_frames: int = 768
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    video_start: float | None = None
    video_end: float | None = None
    resized_height: int | None = None
    resized_width: int | None = None

    def __post_init__(self):
        for field in fields(self):
            if (value := getattr(self, field.name)) is not None or field.name == "fps":
                object.__setattr__(self, field.name, _number(field.name, value))
        if not self.fps > 0:
            raise ValueError(f"fps is {self.fps}; set fps above 0.")
        for name in ("nframes", "max_frames"):
            value = getattr(self, name)
            if value is not None and value < MIN_FRAMES:
                raise ValueError(f"{name} is {value}; a clip is sampled in pairs of frames, set {name} to 2 or more.")
        for name in ("min_frames", "min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; set {name} to 1 or more.")
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels is {self.min_pixels}, above max_pixels {self.max_pixels}; lower the one or raise the other."
            )
        start = max(self.video_start or 0, 0)
        if self.video_end is not None and self.video_end <= start:
            raise ValueError(
                f"video_end is {self.video_end} s, not after video_start {start} s; set it above video_start."
            )
        if (self.resized_height is None) != (self.resized_width is None):
            raise ValueError(
                f"resized_height is {self.resized_height}, resized_width is {self.resized_width}; set both or neither."
            )

    def override(self, block: Mapping[str, Any]) -> "VideoSettings":
        """Return these settings with the values of a message block; None values and keys of the medium are ignored.

        A block's fps replaces an nframes of these settings, and vice versa; a single pixel bound of a block moves the
        other bound of these settings if they conflict. A block of type "image" sets only its size.

        Raises: ValueError for a key that is not a setting of the block's type, or a block with both fps and nframes.
        """
        kind = "image" if block.get("type") == "image" else "video"
        known = IMAGE_KEYS if kind == "image" else [field.name for field in fields(self)]
        given = {key: value for key, value in block.items() if key not in BLOCK_KEYS and value is not None}
        for key in block:
            if key not in known and key not in BLOCK_KEYS:
                nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                article = "an" if kind == "image" else "a"
                raise ValueError(
                    f"{article} {kind} block has the key {key!r}, which is no setting; did you mean {nearest!r}?"
                )
        if "fps" in given and "nframes" in given:
            raise ValueError(
                f"a video block sets both fps ({given['fps']}) and nframes ({given['nframes']}); remove one of the two."
            )
        if "fps" in given:
            given["nframes"] = None
        low, high = given.get("min_pixels"), given.get("max_pixels")
        if low is None and high is not None and self.min_pixels is not None:
            given["min_pixels"] = min(self.min_pixels, _number("max_pixels", high))
        if high is None and low is not None and self.max_pixels is not None:
            given["max_pixels"] = max(self.max_pixels, _number("min_pixels", low))
        return replace(self, **given)


def image_bounds(settings: VideoSettings) -> dict[str, int | None]:
    """Return the settings that apply to an image: `IMAGE_KEYS` -> value."""
    return {key: getattr(settings, key) for key in IMAGE_KEYS}


def _number(name: str, value: Any) -> float | int:
    """Validate the value of a setting: a finite number, returned as int if whole. Raises: ValueError."""
    wanted = "number" if name in _SECONDS else "whole number"
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or (wanted == "whole number" and value != int(value)):
        raise ValueError(f"{name} is {value!r}, of type {type(value).__name__}; a {wanted} is wanted.")
    return value if wanted == "number" else int(value)
