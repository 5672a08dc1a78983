"""One broken or odd input: how it is made and its expected outcome."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trl_perception.media import MediaLimits, VideoSettings

PIXELS = 56 * 112  # as max_pixels, it leaves the drawn clips at their own size
SIX = VideoSettings(nframes=6, max_pixels=PIXELS)
# 30 frames, 29 / 5 = 5.8 apart: 0, 5.8, 11.6, 17.4, 23.2, 29
SIX_OF_THIRTY = [0, 6, 12, 17, 23, 29]


@dataclass(frozen=True)
class Case:
    """Args:
    name: unique; kind: "video" or "image"; about: what is odd, for the table.
    make: folder -> source; the folder is the case's own.
    refused: pattern of the reason; "" where the input decodes.
    numbers: the numbers that the frames carry; greys: the mean of each frame, 0 to 255; colour: mean red, green, blue.
    size: (height, width) as read; total: frames of the source.
    """

    name: str
    kind: str
    about: str
    make: Callable[[Path], Any]
    refused: str = ""
    numbers: list[int] | None = None
    greys: list[float] | None = None
    colour: tuple[int, int, int] | None = None
    size: tuple[int, int] | None = None
    total: int | None = None
    settings: VideoSettings = SIX
    limits: MediaLimits = field(default_factory=MediaLimits)

    def __post_init__(self):
        expected = [self.numbers, self.greys, self.colour, self.size]
        if bool(self.refused) == any(value is not None for value in expected):
            raise ValueError(f"{self.name}: say what it decodes to, or why it is refused")
