"""A clip is refused for damage that FFmpeg only logs; damage that FFmpeg does not detect is not."""

from fractions import Fraction

import av
import av.logging
import numpy as np
import pytest

from trl_perception.media import MediaError, VideoSettings, read_video

ALL = VideoSettings(nframes=24, max_pixels=64 * 96, min_pixels=1)


def moving(path, codec, **options):
    """24 frames of moving noise, so that frames are predicted from each other and are not empty."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 200, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        stream.codec_context.gop_size = 12
        for number in range(24):
            frame = av.VideoFrame.from_ndarray(noise[:, 4 * number : 4 * number + 96].copy(), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def damaged(content: bytes, seed: int) -> bytes:
    """Twenty bytes of the middle are zeroed, or eight bits flipped."""
    random, changed = np.random.default_rng(seed), bytearray(content)
    low, high = len(content) * 3 // 10, len(content) * 8 // 10
    if seed % 2:
        for place in random.integers(low, high, 8):
            changed[place] ^= 1 << int(random.integers(8))
    else:
        start = int(random.integers(low, high))
        changed[start : start + 20] = bytes(20)
    return bytes(changed)


@pytest.fixture
def errors():
    """What FFmpeg logs as errors. One thread decodes: with more, the log callback may deadlock."""
    av.logging.set_level(av.logging.ERROR)
    with av.logging.Capture() as log:
        yield log
    av.logging.set_level(None)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("c.mp4", "libx265", {"x265-params": "log-level=none:pools=none"}),
        ("c.mp4", "libx264", {}),
        ("c.mkv", "libx264", {}),
        ("c.ts", "mpeg2video", {}),
        ("c.avi", "mpeg4", {}),
        ("c.webm", "libvpx-vp9", {}),
    ],
)
def test_what_a_decoder_logs_refuses_the_clip(tmp_path, errors, name, codec, options):
    whole, seen = moving(tmp_path / name, codec, **options), 0
    assert len(read_video(whole, ALL, threads=1).frames) == 24
    for seed in range(12):
        errors.clear()
        refused = False
        try:
            read_video(damaged(whole, seed), ALL, threads=1)
        except MediaError:
            refused = True
        logged = [line for line in errors if line[0] <= av.logging.ERROR and "matroska" not in line[1]]
        seen += bool(logged)
        assert refused or not logged, (seed, logged)
    assert seen or codec == "libvpx-vp9"  # VP9 has no checks: nothing to log


def test_an_open_group_is_not_taken_for_damage(tmp_path):
    whole = moving(tmp_path / "c.ts", "libx264", **{"x264-params": "open-gop=1:bframes=3:keyint=8:scenecut=0"})
    assert len(read_video(whole, ALL).frames) == 24
    late = VideoSettings(nframes=2, video_start=0.8, video_end=0.9, max_pixels=64 * 96, min_pixels=1)
    assert len(read_video(whole, late).frames) == 2
