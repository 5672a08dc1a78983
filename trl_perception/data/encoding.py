"""Writes frames to files: H.264 in MP4 for clips, PNG for images."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def write_mp4(path: str | Path, frames: np.ndarray, fps: int) -> None:
    """Write frames (F,H,W,3) uint8 RGB as H.264, yuv420p. One thread and no B-frames: equal frames give equal bytes."""
    height, width = frames.shape[1:3]
    with av.open(str(path), mode="w", format="mp4") as container:
        options = {"crf": "14", "preset": "superfast", "bf": "0", "threads": "1"}
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def write_png(path: str | Path, image: np.ndarray) -> None:
    """Write an image (H,W,3) uint8 RGB as PNG."""
    Image.fromarray(image).save(path, format="PNG")
