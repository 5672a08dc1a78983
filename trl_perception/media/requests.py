"""Converts message blocks to media requests: combines the settings of run, processor and block.

Training, evaluation and `trl-perception prepare` all use this module.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .limits import MediaLimits
from .loader import MediaRequest
from .settings import VideoSettings

QWEN_PIXELS = (56 * 56, 28 * 28 * 16384)
"""(least, most) pixels of an image or a frame in the published processors of Qwen2-VL and Qwen2.5-VL."""


@dataclass(frozen=True)
class ProcessorSizes:
    """The sizes that a processor determines; the defaults are those of Qwen2-VL and Qwen2.5-VL as published.

    Args:
        image_factor, video_factor: patch_size * merge_size; sides become multiples of it.
        image_pixels, video_pixels: (min, max) pixels of an image, of a frame, if nothing else is set.
    """

    image_factor: int = 28
    video_factor: int = 28
    image_pixels: tuple[int, int] = QWEN_PIXELS
    video_pixels: tuple[int, int] = QWEN_PIXELS

    @classmethod
    def of(cls, processor: Any) -> "ProcessorSizes":
        """Return the sizes of a processor with image and video grids."""
        sizes = {}
        for kind in ("image", "video"):
            part = getattr(processor, f"{kind}_processor")
            sizes[f"{kind}_factor"] = part.patch_size * part.merge_size
            sizes[f"{kind}_pixels"] = (part.size["shortest_edge"], part.size["longest_edge"])
        return cls(**sizes)


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
            settings, factor, pixels = self.video, self.sizes.video_factor, self.sizes.video_pixels
        else:
            rates = {}
            settings = VideoSettings(min_pixels=self.image_min_pixels, max_pixels=self.image_max_pixels)
            factor, pixels = self.sizes.image_factor, self.sizes.image_pixels
        return MediaRequest(kind, block[kind], settings.override(block), factor, pixels, limits=self.limits, **rates)
