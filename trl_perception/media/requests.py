"""Converts message blocks to media requests: combines the settings of run, processor and block.

Training, evaluation and `trl-perception prepare` all use this module.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .limits import MediaLimits
from .loader import MediaRequest
from .sampling import ClipLimits
from .settings import VideoSettings

QWEN_PIXELS = (56 * 56, 28 * 28 * 16384)
"""(least, most) pixels of an image or a frame in the published processors of Qwen2-VL and Qwen2.5-VL."""


@dataclass(frozen=True)
class SizeRule:
    """How a processor sizes one kind of medium; the defaults are those of Qwen2-VL and Qwen2.5-VL as published.

    Args:
        factor: patch_size * merge_size, sides become multiples of it; None where the processor resizes to a size of its own.
        limits: (min, max) pixels of an image or a frame, if nothing else is set; `ClipLimits` for all frames of a clip.
        frames_per_cell: raw frames of a temporal cell.
        tokens: (frames, height, width) -> visual tokens, where factor is None.
    """

    factor: int | None = 28
    limits: tuple[int, int] | ClipLimits | None = QWEN_PIXELS
    frames_per_cell: int = 2
    tokens: Callable[[int, int, int], int] | None = None

    def count(self, frames: int, height: int, width: int) -> int:
        """Return the visual tokens of sized frames: ceil(frames / frames_per_cell) * height * width / factor^2."""
        if self.factor is None:
            return self.tokens(frames, height, width)
        return math.ceil(frames / self.frames_per_cell) * height * width // self.factor**2


@dataclass(frozen=True)
class ProcessorSizes:
    """The sizes that a processor determines, of images and of videos."""

    image: SizeRule = field(default_factory=SizeRule)
    video: SizeRule = field(default_factory=SizeRule)


@dataclass(frozen=True)
class MediaSettings:
    """The media settings of a run.

    Args:
        video: frame sampling and sizes.
        image_min_pixels, image_max_pixels: size limits of images; None leaves them to the processor.
        limits: resource limits for reading one medium.
        sizes: of the processor.
    """

    video: VideoSettings = field(default_factory=VideoSettings)
    image_min_pixels: int | None = None
    image_max_pixels: int | None = None
    limits: MediaLimits = field(default_factory=MediaLimits)
    sizes: ProcessorSizes = field(default_factory=ProcessorSizes)

    def request(self, block: Mapping[str, Any]) -> MediaRequest:
        """Return the request for an image or video block, whose own keys override these settings.

        Errors: ValueError for a key that is not a setting, or a value out of its bounds.
        """
        kind = block["type"]
        if kind == "video":
            rates = {"source_fps": block["sample_fps"]} if "sample_fps" in block else {}
            settings, rule = self.video, self.sizes.video
        else:
            rates = {}
            settings = VideoSettings(min_pixels=self.image_min_pixels, max_pixels=self.image_max_pixels)
            rule = self.sizes.image
        return MediaRequest(
            kind,
            block[kind],
            settings.override(block),
            rule.factor,
            rule.limits,
            limits=self.limits,
            count=rule.count,
            **rates,
        )
