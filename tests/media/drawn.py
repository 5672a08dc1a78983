"""Frames that encode their own number: left half (i // 16) * 16, right half (i % 16) * 16, in grey. And clips of them."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

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
    """Write a 90-degree rotation into the MP4's track header, as phones held upright do."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    content[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -1 << 16, 0, 0, HEIGHT << 16, 0, 1 << 30)
    path.write_bytes(content)
    return path


def numbers(frames) -> list[int]:
    """Decode the numbers in (F,3,H,W) frames."""
    half = frames.shape[-1] // 2
    parts = [frames[..., 8:-8, 8 : half - 8], frames[..., 8:-8, half + 8 : -8]]
    tall, low = ((part.float().mean(dim=(1, 2, 3)) / 16).round().int() for part in parts)
    return (tall * 16 + low).tolist()
