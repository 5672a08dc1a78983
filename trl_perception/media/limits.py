"""Limits on pixels, frames and seconds of one medium: a hostile file is rejected before it fills the host's memory."""

import os
import time
from dataclasses import dataclass

from .errors import MediaError

_OR_DROP = ", or drop this sample"


@dataclass(frozen=True)
class MediaLimits:
    """Resource limits for reading one medium; a medium past a limit is rejected. Each is a setting of the trainers.

    Args:
        max_pixels: maximum pixels (height * width) of an image or a frame as stored, before any resizing.
        max_frames: maximum frames of a clip, declared in its header or found while reading.
        timeout: maximum seconds for one medium, including its download.
    Raises: ValueError for a limit that is not above 0.
    """

    max_pixels: int = 1 << 27  # 16384 * 8192; 8K video has a quarter of that
    max_frames: int = 1_000_000  # nine hours at 30 frames per second
    timeout: float = 600.0

    def __post_init__(self):
        for name in ("max_pixels", "max_frames", "timeout"):
            if not getattr(self, name) > 0:
                raise ValueError(f"media_{name} is {getattr(self, name)}; set media_{name} above 0")


def decoder_threads(workers: int) -> int:
    """Return the threads of each of `workers` concurrent decoders: processors / workers, at least one."""
    return max(1, (os.cpu_count() or 1) // workers)


class Budget:
    """The limits of one medium while it is read. Readers check before they allocate; the timeout starts on creation.

    Args: name: the medium, for errors; limits: None means MediaLimits(); threads: maximum threads of its decoder, None
        for one per processor.
    """

    def __init__(self, name: str, limits: MediaLimits | None = None, threads: int | None = None):
        self.name = name
        self.threads = threads or decoder_threads(workers=1)
        self.limits = limits or MediaLimits()
        self._end = time.monotonic() + self.limits.timeout

    @property
    def seconds_left(self) -> float:
        """Seconds until the timeout, below 0 after it."""
        return self._end - time.monotonic()

    def check_time(self) -> None:
        """Raises: MediaError after the timeout."""
        if self.seconds_left <= 0:
            reason = f"reading it takes longer than media_timeout {self.limits.timeout:g} s"
            raise MediaError(self.name, reason, "Raise media_timeout" + _OR_DROP)

    def check_pixels(self, height: int, width: int) -> None:
        """Raises: MediaError for a picture of more than max_pixels."""
        if height * width > self.limits.max_pixels:
            reason = f"{height}x{width} pixels are more than media_max_pixels {self.limits.max_pixels}"
            raise MediaError(self.name, reason, "Raise media_max_pixels" + _OR_DROP)

    def check_frames(self, count: int, found: str = "found so far") -> None:
        """Raises: MediaError for a clip of more than max_frames."""
        if count > self.limits.max_frames:
            reason = f"{count} frames ({found}) are more than media_max_frames {self.limits.max_frames}"
            raise MediaError(self.name, reason, "Raise media_max_frames, cut the clip" + _OR_DROP)
