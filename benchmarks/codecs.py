"""Read clips of every codec by this package and by qwen-vl-utils with torchcodec: `python -m benchmarks.codecs [--json FILE]`.

Both select the same number of frames over a minute and resize them alike, with one thread each, in turn; the ratios are of
processor time. Needs torchcodec, which loads the shared libraries of an FFmpeg on the machine.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import torch

from benchmarks.measure import machine, ratios
from benchmarks.performance_table import with_table
from trl_perception.evaluation.tables import aligned
from trl_perception.media import VideoSettings
from trl_perception.media.video import read_video

SECONDS, RATE, HEIGHT, WIDTH = 60, 30, 360, 640  # of a clip
PIXELS = 224 * 392  # of a frame that is kept
# Read when qwen-vl-utils is imported.
READER = {"FORCE_QWENVL_VIDEO_READER": "torchcodec", "TORCHCODEC_NUM_THREADS": "1"}
NAMES = {  # of a codec: (PyAV's encoder, container, its options)
    "H.264": ("libx264", "mp4", {"preset": "veryfast"}),
    "HEVC": ("libx265", "mp4", {"preset": "ultrafast", "x265-params": "log-level=error"}),
    "MPEG-4": ("mpeg4", "avi", {}),
    "VP8": ("libvpx", "webm", {"deadline": "realtime", "cpu-used": "8"}),
    "VP9": ("libvpx-vp9", "webm", {"deadline": "realtime", "cpu-used": "8"}),
    "AV1": ("libsvtav1", "mp4", {"preset": "12"}),
}
PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def write(path: Path, encoder: str, options: Mapping[str, str]) -> None:
    """A gradient under noise that moves."""
    noise = np.random.default_rng(0).integers(0, 40, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    gradient = np.linspace(0, 200, WIDTH).astype(np.uint8)[None, :, None]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=RATE, options=dict(options))
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = HEIGHT, WIDTH, "yuv420p", 1_000_000
        for number in range(SECONDS * RATE):
            picture = np.roll(gradient, number, axis=1) + np.roll(noise, 3 * number, axis=0)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def measure(path: Path, frames: int, repeats: int) -> dict[str, float]:
    """The ratios of the two readers, and MiB of the frames that are kept."""
    from qwen_vl_utils.vision_process import fetch_video

    settings = VideoSettings(nframes=frames, min_pixels=PIXELS // 2, max_pixels=PIXELS)
    request = {"video": str(path), "nframes": frames, "min_pixels": PIXELS // 2, "max_pixels": PIXELS}

    def ours():
        return read_video(str(path), settings, threads=1)

    def theirs():
        return fetch_video(request, return_video_metadata=True)

    kept, (shown, facts) = ours().frames, theirs()
    if facts["video_backend"] != "torchcodec" or shown.shape != kept.shape:
        raise RuntimeError(
            f"{path.name}: {facts['video_backend']} read {shown.shape}; torchcodec and {kept.shape} are wanted."
        )
    return {**ratios(theirs, ours, "cpu", repeats), "kept_mb": kept.nbytes / 2**20}


def as_markdown(result: Mapping) -> str:
    """A row a codec and number of frames."""
    lines = [["codec", "frames", "times as fast", "peak MiB", "of it frames that are kept", "torchcodec's peak MiB"]]
    for case in result["cases"]:
        megabytes = [f"{case[key]:.0f}" for key in ("fast_mb", "kept_mb", "slow_mb")]
        lines.append([case["codec"], str(case["frames"]), f"{case['speedup']:.1f}", *megabytes])
    return f"{result['machine']}\n\n{aligned(lines)}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codecs", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where the figures go, and from there into docs/performance.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ |= READER
    result = {"machine": machine("cpu"), "cases": []}
    with tempfile.TemporaryDirectory() as folder:
        for codec in options.codecs:
            encoder, container, settings = NAMES[codec]
            path = Path(folder) / f"{codec}.{container}"
            write(path, encoder, settings)
            for frames in options.frames:
                found = measure(path, frames, options.repeats)
                result["cases"].append({"codec": codec, "frames": frames, **found})
                print(f"{codec}, {frames} frames: {found['speedup']:.2f} times as fast", flush=True)
    print(as_markdown(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
        PAGE.write_text(with_table(PAGE.read_text(), as_markdown(result), "codecs"))


if __name__ == "__main__":
    main()
