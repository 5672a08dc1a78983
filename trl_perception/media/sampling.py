"""Which frames of a clip are used, and at what size: the rules of qwen-vl-utils on plain numbers."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from qwen_vl_utils.vision_process import (
    FRAME_FACTOR,
    MODEL_SEQ_LEN,
    VIDEO_MAX_TOKEN_NUM,
    VIDEO_MIN_TOKEN_NUM,
    calculate_video_frame_range,
    floor_by_factor,
    smart_nframes,
    smart_resize,
)

from .errors import MediaError

# Keys of a message block that name the medium or its source rate rather than the sampling.
BLOCK_KEYS = ("type", "video", "image", "text", "sample_fps", "raw_fps")

SizeLimits = tuple[int | None, int | None]


@dataclass(frozen=True)
class VideoSettings:
    """How a clip is cut, sampled and resized. The names are those of a qwen-vl-utils message block.

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
    Raises: ValueError for a value out of its bounds, min_pixels > max_pixels, or one of resized_* without the other.
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
        if not self.fps > 0:
            raise ValueError(f"fps is {self.fps}; set fps above 0")
        for name in ("nframes", "max_frames"):
            value = getattr(self, name)
            if value is not None and value < FRAME_FACTOR:
                raise ValueError(f"{name} is {value}; a clip is sampled in pairs of frames, set {name} to 2 or more")
        for name in ("min_frames", "min_pixels", "max_pixels", "total_pixels", "resized_height", "resized_width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; set {name} to 1 or more")
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"min_pixels is {self.min_pixels}, above max_pixels {self.max_pixels}; lower the one or raise the other"
            )
        if (self.resized_height is None) != (self.resized_width is None):
            raise ValueError(
                f"resized_height is {self.resized_height}, resized_width is {self.resized_width}; set both or neither"
            )

    def override(self, block: Mapping[str, Any]) -> "VideoSettings":
        """These settings with the values that a message block sets; None values and the medium's own keys set none.

        A block's fps replaces an nframes of these settings, and the reverse.

        Raises: ValueError for a key that is no setting, or a block with both fps and nframes.
        """
        known = [field.name for field in fields(self)]
        given = {key: value for key, value in block.items() if key not in BLOCK_KEYS and value is not None}
        for key in block:
            if key not in known and key not in BLOCK_KEYS:
                nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
                raise ValueError(f"a video block has the key {key!r}, which is no setting; did you mean {nearest!r}?")
        if "fps" in given and "nframes" in given:
            raise ValueError(
                f"a video block sets both fps ({given['fps']}) and nframes ({given['nframes']}); remove one of the two"
            )
        if "fps" in given:
            given["nframes"] = None
        return replace(self, **given)


def frame_range(settings: VideoSettings, total_frames: int, fps: float, source: str) -> tuple[int, int, int]:
    """First index, last index and number of frames between video_start and video_end, both ends included.

    [ceil(video_start * fps), min(floor(video_end * fps), total_frames - 1)]

    Raises: MediaError for no frames, start >= end, a start at or past the clip's end, or fewer than two frames in the
        range. A clip of one frame is used whole.
    Source: qwen_vl_utils.vision_process.calculate_video_frame_range.
    """
    start, end = settings.video_start, settings.video_end
    if total_frames < 1:
        raise MediaError(source, "it holds no video frame, and at least one is wanted", "Replace or drop this sample")
    duration = total_frames / fps
    if start is not None and end is not None and start >= end:
        raise MediaError(
            source, f"video_start {start} s is not before video_end {end} s", "Set video_start below video_end"
        )
    if start is not None and start >= duration:
        raise MediaError(
            source, f"video_start {start} s is past the end, the clip lasts {duration:.3f} s", "Lower video_start"
        )
    if end is not None and end <= 0:
        raise MediaError(source, f"video_end {end} s is before the clip's first frame", "Set video_end above 0")
    if total_frames == 1:
        return 0, 0, 1
    try:
        return calculate_video_frame_range({"video_start": start, "video_end": end}, total_frames, fps)
    except ValueError as error:
        raise MediaError(
            source,
            f"the range from video_start {start} s to video_end {end} s holds fewer than two of "
            f"the {total_frames} frames at {fps:.3f} frames per second",
            "Widen video_start and video_end",
        ) from error


def sample_indices(
    settings: VideoSettings, total_frames: int, fps: float, source: str = "video"
) -> tuple[list[int], int]:
    """Frames to keep of a clip that plays total_frames at fps frames per second.

    indices = round(linspace(first, last, n)), n = even floor of clip(seconds * settings.fps, min_frames, max_frames)

    Returns: absolute frame indices, ascending, and count, the number of frames in the range they were drawn from.
    Raises: MediaError as frame_range, and where the range has fewer frames than nframes.
    Source: qwen_vl_utils.vision_process.smart_nframes. Differs: a clip of one frame keeps it.
    """
    first, last, count = frame_range(settings, total_frames, fps, source)
    if count == 1:
        return [first], 1
    names = ("fps", "min_frames", "max_frames") if settings.nframes is None else ("nframes",)
    try:
        kept = smart_nframes({name: getattr(settings, name) for name in names}, total_frames=count, video_fps=fps)
    except ValueError as error:
        raise MediaError(
            source,
            f"{settings.nframes} frames are wanted and the range has {count}",
            "Lower nframes, or set fps and max_frames instead",
        ) from error
    return torch.linspace(first, last, kept).round().long().tolist(), count


def thin_indices(
    settings: VideoSettings, total_frames: int, fps: float, source: str = "frames"
) -> tuple[list[int], int]:
    """Frames to keep of a list or array that was sampled already: all in the range, or evenly fewer above the bound.

    Returns: absolute frame indices, ascending, and the number of frames in the range. The bound is nframes, or
        max_frames where nframes is None.
    Raises: MediaError as frame_range.
    Source: qwen_vl_utils.vision_process.fetch_video. Differs: max_frames and the time range hold here too, and an odd
        count stays odd.
    """
    first, last, count = frame_range(settings, total_frames, fps, source)
    bound = settings.max_frames if settings.nframes is None else settings.nframes
    if count <= bound:
        return list(range(first, last + 1)), count
    return torch.linspace(first, last, floor_by_factor(bound, FRAME_FACTOR)).round().long().tolist(), count


def average_fps(times: np.ndarray, last_duration: float, declared: float, rounding: float) -> float:
    """Frames per second of a clip whose N frames are shown at times (N,), in seconds, the last for last_duration.

    (N - 1) / (times[-1] - times[0]) where gaps are even within rounding, or declared where it agrees;
    N / (times[-1] - times[0] + last_duration) where they are not
    """
    gaps, span = np.diff(times), float(times[-1] - times[0])
    if span <= 0:
        return declared if declared > 0 else 1.0
    if gaps.max() - gaps.min() > rounding:
        return len(times) / (span + (last_duration or gaps.mean()))
    return declared if declared > 0 and abs(len(gaps) / declared - span) <= rounding else len(gaps) / span


def frame_size(
    height: int,
    width: int,
    nframes: int,
    settings: VideoSettings,
    *,
    factor: int = 28,
    size_limits: SizeLimits | None = None,
    source: str = "video",
) -> tuple[int, int]:
    """Height and width, in pixels, that every kept frame is resized to: multiples of factor within the pixel bounds.

    min_pixels <= h * w <= min(max_pixels, 768 * factor**2, 2 * total_pixels / nframes)

    Bounds come from settings, then from size_limits (min, max), then 128 and 768 times factor**2. A bound of
    weaker origin gives way: a max_pixels of settings below the processor's minimum lowers that minimum.

    Raises: MediaError for sides more than 200 to 1, or bounds that leave less than factor pixels to a side.
    Source: qwen_vl_utils.vision_process.fetch_video.
    """
    try:
        if settings.resized_height is not None:
            size = smart_resize(settings.resized_height, settings.resized_width, factor)
        else:
            low, high = _pixel_bounds(nframes, settings, factor, size_limits or (None, None))
            size = smart_resize(height, width, factor, min_pixels=low, max_pixels=high)
    except ValueError as error:
        raise MediaError(
            source,
            f"frames of {height}x{width} pixels are not within a side ratio of 200",
            "Crop or drop this sample",
        ) from error
    if min(size) < factor:
        raise MediaError(
            source,
            f"frames of {height}x{width} pixels would become {size[0]}x{size[1]}, {factor} pixels a side are wanted",
            "Raise max_pixels or total_pixels, or lower the number of frames",
        )
    return size


def _pixel_bounds(nframes: int, settings: VideoSettings, factor: int, size_limits: SizeLimits) -> tuple[int, float]:
    low, high = settings.min_pixels, settings.max_pixels
    if low is None:
        low = size_limits[0] if size_limits[0] is not None else VIDEO_MIN_TOKEN_NUM * factor**2
        low = min(low, high) if high is not None else low
    if high is None and size_limits[1] is not None:
        high = max(size_limits[1], low)
    total = settings.total_pixels if settings.total_pixels is not None else MODEL_SEQ_LEN * factor**2 * 0.9
    cap = max(min(VIDEO_MAX_TOKEN_NUM * factor**2, total / nframes * FRAME_FACTOR), int(low * 1.05))
    return low, cap if high is None else min(high, cap)
