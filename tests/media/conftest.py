"""Real clips whose pictures tell their own number: left half (i // 16) * 16, right half (i % 16) * 16, in grey."""

import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

HEIGHT, WIDTH = 56, 112


def draw(number: int) -> np.ndarray:
    """(56,112,3) uint8 that carries a number below 256."""
    frame = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    frame[:, : WIDTH // 2], frame[:, WIDTH // 2 :] = number // 16 * 16, number % 16 * 16
    return frame


def encode(path: Path, numbers, *, rate=10, codec="libx264", milliseconds=None, gop=12, audio=False, **options):
    """Encode pictures at a constant rate, or each at its own milliseconds."""
    tick = Fraction(1, 1000) if milliseconds is not None else Fraction(1, rate)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        stream.codec_context.gop_size = gop
        stream.codec_context.time_base = tick
        sound = container.add_stream("aac", rate=16000) if audio else None
        for position, number in enumerate(numbers):
            frame = av.VideoFrame.from_ndarray(draw(number), format="rgb24")
            frame.pts = position if milliseconds is None else milliseconds[position]
            frame.time_base = tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound is not None:
            mux_silence(container, sound, seconds=3 * len(numbers) / rate)
    return path


def mux_silence(container, stream, seconds: float) -> None:
    silence = av.AudioFrame.from_ndarray(np.zeros((1, int(16000 * seconds)), np.float32), format="fltp", layout="mono")
    silence.sample_rate, silence.pts = 16000, 0
    container.mux(stream.encode(silence))
    container.mux(stream.encode())


def turned_clockwise(path: Path) -> Path:
    """Write a quarter turn into the MP4's track header, as phones held upright do."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, HEIGHT << 16, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.fixture(scope="session")
def clips(tmp_path_factory) -> dict[str, Path]:
    """Clips of the session by name; do not write to them."""
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
    """Read back the numbers that a clip's (F,3,H,W) frames carry."""

    def read(frames) -> list[int]:
        half = frames.shape[-1] // 2
        parts = [frames[..., 8:-8, 8 : half - 8], frames[..., 8:-8, half + 8 : -8]]
        tall, low = ((part.float().mean(dim=(1, 2, 3)) / 16).round().int() for part in parts)
        return (tall * 16 + low).tolist()

    return read


@pytest.fixture(scope="session")
def picture() -> Callable:
    """The function that draws a number below 256: (56,112,3) uint8."""
    return draw


@pytest.fixture(scope="session")
def write_clip() -> Callable:
    """The function that encodes numbers: (path, numbers, *, rate, codec, milliseconds, gop, audio, **muxer options)."""
    return encode
