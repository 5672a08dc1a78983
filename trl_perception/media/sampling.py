"""Computes which frames of a clip are used, and at what size: the rules of qwen-vl-utils on plain numbers."""

import math
from typing import NamedTuple

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
from .settings import VideoSettings


class ClipLimits(NamedTuple):
    """(min, max) pixels of all frames of a clip together, as the processors of Qwen3-VL and GLM-4.1V count them."""

    least: int
    most: int

    def of_frame(self, nframes: int) -> tuple[int, int]:
        """Return the limits of each of nframes frames, which the processor makes even."""
        counted = nframes + nframes % FRAME_FACTOR
        return -(-self.least // counted), self.most // counted


SizeLimits = tuple[int | None, int | None] | ClipLimits

UNSIZED_PIXELS = VIDEO_MAX_TOKEN_NUM * 28**2
"""Most pixels of a frame that is decoded for a processor with a size of its own, if nothing else is set."""


def frame_range(settings: VideoSettings, total_frames: int, fps: float, source: str) -> tuple[int, int, int]:
    """Return first index, last index and number of frames between video_start and video_end, both inclusive.

    [ceil(video_start * fps), min(floor(video_end * fps), total_frames - 1)]

    A clip of one frame is used whole.

    Raises: MediaError for no frames, a start at or past the clip's end, or fewer than two frames in the range.
    Source: qwen_vl_utils.vision_process.calculate_video_frame_range.
    """
    start, end = settings.video_start, settings.video_end
    if total_frames < 1:
        raise MediaError(source, "it holds no video frame, and at least one is wanted", "Replace or drop this sample")
    duration = total_frames / fps
    if start is not None and start >= duration:
        raise MediaError(
            source, f"video_start {start} s is past the end, the clip lasts {duration:.3f} s", "Lower video_start"
        )
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
    """Return the frames to keep of a clip with total_frames at fps frames per second.

    indices = round(linspace(first, last, n)), n = even floor of clip(seconds * settings.fps, min_frames, max_frames)

    Returns: absolute frame indices, ascending, and count, the number of frames in the range they were drawn from.
    Raises: MediaError as frame_range, and if the range has fewer frames than nframes.
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
    """Return the frames to keep of an already sampled list or array: all in the range, or evenly spaced up to a bound.

    Returns: absolute frame indices, ascending, and the number of frames in the range. The bound is nframes, or
        max_frames if nframes is None.
    Raises: MediaError as frame_range.
    Source: qwen_vl_utils.vision_process.fetch_video. Differs: max_frames and the time range apply here too, and an odd
        count stays odd.
    """
    first, last, count = frame_range(settings, total_frames, fps, source)
    bound = settings.max_frames if settings.nframes is None else settings.nframes
    if count <= bound:
        return list(range(first, last + 1)), count
    return torch.linspace(first, last, floor_by_factor(bound, FRAME_FACTOR)).round().long().tolist(), count


def average_fps(times: np.ndarray, last_duration: float, declared: float, rounding: float) -> float:
    """Return the frame rate of a clip whose N frames are shown at times (N,), in seconds, the last for last_duration.

    (N - 1) / (times[-1] - times[0]) if gaps are even within rounding, or declared if it agrees;
    N / (times[-1] - times[0] + last_duration) otherwise
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
    factor: int | None = 28,
    size_limits: SizeLimits | None = None,
    source: str = "video",
) -> tuple[int, int]:
    """Return height and width that every kept frame is resized to: multiples of factor within the pixel bounds.

    min_pixels <= h * w <= min(max_pixels, 768 * factor**2, 2 * total_pixels / nframes)

    Without a factor the processor resizes frames, and they are only reduced to max_pixels before, by default 602,112.

    Bounds come from settings, then from size_limits (min, max), then 128 and 768 times factor**2. A bound from an
    earlier source overrides one from a later source: a max_pixels of settings below the processor's minimum lowers it.

    Raises: MediaError for sides more than 200 to 1, or bounds that leave less than factor pixels to a side.
    Source: qwen_vl_utils.vision_process.fetch_video.
    """
    if factor is None:
        return _reduced(height, width, settings.max_pixels or UNSIZED_PIXELS)
    if settings.resized_height is not None:
        return _multiples(settings.resized_height, settings.resized_width, factor, None, source)
    if isinstance(size_limits, ClipLimits):
        size_limits = size_limits.of_frame(nframes)
    low, limit, cap = pixel_bounds(nframes, settings, factor, size_limits or (None, None))
    return _multiples(height, width, factor, (low, min(limit, cap)), source)


def image_size(
    height: int,
    width: int,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    resized_height: int | None = None,
    resized_width: int | None = None,
    factor: int | None = 28,
    size_limits: SizeLimits | None = None,
    source: str = "image",
) -> tuple[int, int]:
    """Return height and width that an image is resized to: multiples of factor within the pixel bounds.

    min_pixels <= h * w <= max_pixels, or resized_height x resized_width to the nearest multiples

    Without a factor the processor resizes images, and they are only reduced to max_pixels before, if it is set.

    Bounds that are None come from size_limits (min, max), then 4 and 16384 times factor**2. A bound from an earlier
    source overrides one from a later source: a max_pixels below the processor's minimum lowers it.

    Raises: MediaError for sides more than 200 to 1, or bounds that leave less than factor pixels to a side.
    Source: qwen_vl_utils.vision_process.fetch_image.
    """
    if factor is None:
        return (height, width) if max_pixels is None else _reduced(height, width, max_pixels)
    if resized_height is not None:
        return _multiples(resized_height, resized_width, factor, None, source)
    low, high = size_limits or (None, None)
    low, high = 4 * factor**2 if low is None else low, 16384 * factor**2 if high is None else high
    if min_pixels is None and max_pixels is not None:
        low = min(low, max_pixels)
    if max_pixels is None and min_pixels is not None:
        high = max(high, min_pixels)
    low, high = low if min_pixels is None else min_pixels, high if max_pixels is None else max_pixels
    return _multiples(height, width, factor, (low, high), source)


def _reduced(height: int, width: int, most: int) -> tuple[int, int]:
    """Return the size reduced to `most` pixels, with the same ratio of sides."""
    scale = min(1.0, math.sqrt(most / (height * width)))
    return max(1, math.floor(height * scale)), max(1, math.floor(width * scale))


def _multiples(
    height: int, width: int, factor: int, bounds: tuple[float, float] | None, source: str
) -> tuple[int, int]:
    """Round both sides to multiples of factor with pixels within bounds (min, max). Raises: MediaError."""
    least, most = bounds or (None, None)
    if bounds and least > most:
        raise MediaError(source, f"min_pixels {least} is above max_pixels {most}", "Lower the one or raise the other")
    try:
        size = smart_resize(height, width, factor, least, most)
    except ValueError as error:
        reason = f"{height}x{width} pixels are not within an aspect ratio of 200"
        raise MediaError(source, reason, "Crop or drop this sample") from error
    if min(size) < factor:
        reason = f"{height}x{width} pixels would become {size[0]}x{size[1]}, and {factor} pixels a side are wanted"
        raise MediaError(
            source, reason, "Raise max_pixels or total_pixels, lower the number of frames, or crop this sample"
        )
    return size


def pixel_bounds(
    nframes: int, settings: VideoSettings, factor: int, size_limits: SizeLimits
) -> tuple[int, float, float]:
    """Return the minimum pixels of a frame, the maximum of settings and processor, and that of a clip of nframes."""
    low, high = settings.min_pixels, settings.max_pixels
    if low is None:
        low = size_limits[0] if size_limits[0] is not None else VIDEO_MIN_TOKEN_NUM * factor**2
        low = min(low, high) if high is not None else low
    if high is None and size_limits[1] is not None:
        high = max(size_limits[1], low)
    total = settings.total_pixels if settings.total_pixels is not None else MODEL_SEQ_LEN * factor**2 * 0.9
    cap = max(min(VIDEO_MAX_TOKEN_NUM * factor**2, total / nframes * FRAME_FACTOR), int(low * 1.05))
    return low, cap if high is None else high, cap
