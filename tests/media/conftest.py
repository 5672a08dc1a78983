"""Real clips whose frames encode their own number."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import pytest

from tests.media.drawn import draw, encode, mux_silence, numbers, turned_clockwise


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> dict[str, Path]:
    """Clips of the session by name; do not modify them."""
    folder = tmp_path_factory.mktemp("clips")
    thirty = range(30)
    made = {
        "plain": encode(folder / "plain.mp4", thirty),
        "one_frame": encode(folder / "one.mp4", [7]),
        "ntsc": encode(folder / "ntsc.mp4", range(60), rate=Fraction(30000, 1001)),
        "long": encode(folder / "long.mp4", range(240), gop=40),
        # frames 0..9 each 100 ms, then one each second
        "variable": encode(
            folder / "vfr.mp4", range(20), milliseconds=[*range(0, 1000, 100), *range(1000, 11000, 1000)]
        ),
        "late_start": encode(folder / "late.mp4", thirty, milliseconds=[2000 + 100 * i for i in thirty]),
        "edited": encode(folder / "edited.mp4", range(40), milliseconds=[100 * (i - 20) for i in range(40)]),
        "webm": encode(folder / "clip.webm", thirty, codec="libvpx-vp9"),
        "vp8": encode(folder / "vp8.webm", thirty, codec="libvpx", rate=30),
        "avi": encode(folder / "clip.avi", thirty),
        "stream": encode(folder / "clip.ts", thirty),
        "rawest": encode(folder / "clip.h264", thirty),
        "with_sound": encode(folder / "sound.mp4", range(10), audio=True),
        "turned": turned_clockwise(encode(folder / "turned.mp4", [15, 15, 15, 15])),
    }
    with av.open(str(folder / "sound_only.mp4"), "w") as container:
        mux_silence(container, container.add_stream("aac", rate=16000), seconds=1.0)
    made["sound_only"] = folder / "sound_only.mp4"
    front = encode(folder / "front.mp4", thirty, movflags="faststart").read_bytes()
    made["cut_mp4"] = folder / "cut.mp4"
    made["cut_mp4"].write_bytes(front[: len(front) * 6 // 10])
    matroska = encode(folder / "whole.mkv", thirty).read_bytes()
    made["cut_mkv"] = folder / "cut.mkv"
    made["cut_mkv"].write_bytes(matroska[: len(matroska) * 6 // 10])
    return made


@pytest.fixture(scope="session")
def numbers_of() -> Callable:
    """Decode the numbers in a clip's (F,3,H,W) frames."""
    return numbers


@pytest.fixture(scope="session")
def picture() -> Callable:
    """Return the function that draws a number below 256: (56,112,3) uint8."""
    return draw


@pytest.fixture(scope="session")
def write_clip() -> Callable:
    """The function that encodes numbers: (path, numbers, *, rate, codec, milliseconds, gop, audio, **muxer options)."""
    return encode
