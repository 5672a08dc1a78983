"""Reads size, length and number of visual tokens of a medium without decoding it."""

from dataclasses import dataclass
from typing import Any

from .container import REPLACE, opened
from .errors import MediaError, describe
from .images import resolve
from .limits import Budget, MediaLimits
from .loader import MediaRequest, Medium
from .pictures import opened_picture
from .requests import QWEN_PIXELS, SizeRule
from .sampling import SizeLimits, frame_size, image_size, sample_indices
from .settings import VideoSettings, image_bounds
from .timeline import packet_timeline
from .video import VideoClip


@dataclass(frozen=True)
class MediaFacts:
    """kind: "video" or "image"; height, width in pixels; frames, and frames per second, of a video."""

    kind: str
    height: int
    width: int
    frames: int = 1
    fps: float = 1.0

    @property
    def seconds(self) -> float:
        """Length of a video, 0.0 for an image."""
        return self.frames / self.fps if self.kind == "video" else 0.0


def probe(kind: str, source: Any, limits: MediaLimits | None = None) -> MediaFacts:
    """Read the header of an image, or the header and the packets of a video: only packets hold its times.

    Nothing is decoded, so truncation is detected but other damage is not.

    Args: source: path, URL or bytes; limits: resource limits, None means MediaLimits().
    Raises: MediaError if the medium cannot be read, holds no picture, is truncated or past a limit.
    """
    name = describe(source)
    budget = Budget(name, limits)
    medium = resolve(source, budget)
    if kind == "image":
        with opened_picture(medium, name) as image:
            budget.check_pixels(image.height, image.width)
            return MediaFacts("image", image.height, image.width)
    with opened(medium, budget) as (container, stream):
        if not stream.width or not stream.height:
            raise MediaError(name, f"its header says {stream.height}x{stream.width} pixels", REPLACE)
        timeline = packet_timeline(container, stream, name)
        return MediaFacts("video", stream.height, stream.width, len(timeline.times), timeline.fps)


def visual_tokens(
    facts: MediaFacts,
    settings: VideoSettings,
    *,
    image_limits: SizeLimits = QWEN_PIXELS,
    video_limits: SizeLimits = QWEN_PIXELS,
    factor: int = 28,
) -> int:
    """Return the tokens of a medium: ceil(n / 2) * h * w / factor^2 for n sampled frames of h x w; n = 2 for an image.

    Args:
        settings: sampling and size of videos.
        image_limits, video_limits: (min_pixels, max_pixels) of an image, and of a frame if settings have none.
        factor: patch_size * merge_size of the processor.
    Raises: MediaError if the settings do not fit the medium, as when the medium is read.
    """
    video = facts.kind == "video"
    limits, settings = (video_limits, settings) if video else (image_limits, VideoSettings())
    count = SizeRule(factor).count
    return expected_tokens(facts, MediaRequest(facts.kind, "", settings, factor, limits, count=count))


def expected_tokens(facts: MediaFacts, request: MediaRequest) -> int:
    """Return the visual tokens of a request's medium, from its header.

    Raises: MediaError as [`visual_tokens`].
    """
    settings, sizes = request.settings, {"factor": request.factor, "size_limits": request.size_limits}
    if facts.kind == "image":
        return request.count(1, *image_size(facts.height, facts.width, **image_bounds(settings), **sizes))
    frames = len(sample_indices(settings, facts.frames, facts.fps)[0])
    return request.count(frames, *frame_size(facts.height, facts.width, frames, settings, **sizes))


def read_tokens(medium: Medium, request: MediaRequest) -> int:
    """Return the tokens of a request's medium after reading: sampled and resized."""
    if isinstance(medium, VideoClip):
        return request.count(len(medium.frames), *medium.frames.shape[-2:])
    return request.count(1, medium.height, medium.width)
