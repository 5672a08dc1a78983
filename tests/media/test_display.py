"""Frames as players show them: display matrices of all eight orientations, one field of interlaced frames."""

import gc
import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import VideoReformatter

from trl_perception.media import MediaError, VideoSettings, read_video
from trl_perception.media.display import upright

HEIGHT, WIDTH = 56, 84
KEEP = VideoSettings(max_pixels=HEIGHT * WIDTH, min_pixels=1)
# a, b, c, d of (x, y) -> (a x + c y, b x + d y), and what it does to rows of pixels
ORIENTATIONS = {
    (1, 0, 0, 1): lambda rows: rows,
    (-1, 0, 0, 1): lambda rows: rows[:, ::-1],  # mirrored left to right
    (1, 0, 0, -1): lambda rows: rows[::-1],  # mirrored top to bottom
    (-1, 0, 0, -1): lambda rows: rows[::-1, ::-1],  # rotated by 180 degrees
    (0, 1, -1, 0): lambda rows: np.rot90(rows, -1),  # rotated by 90 degrees clockwise
    (0, -1, 1, 0): lambda rows: np.rot90(rows, 1),  # rotated by 90 degrees counter-clockwise
    (0, 1, 1, 0): lambda rows: rows.transpose(1, 0, 2),  # columns become rows
    (0, -1, -1, 0): lambda rows: np.rot90(rows[:, ::-1], -1),  # mirrored, then clockwise
}


def four_corners() -> np.ndarray:
    """Four quarters of different colours, so that every rotation and mirroring changes the image."""
    rows = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    rows[: HEIGHT // 2, : WIDTH // 2], rows[: HEIGHT // 2, WIDTH // 2 :] = (200, 40, 40), (40, 200, 40)
    rows[HEIGHT // 2 :, : WIDTH // 2], rows[HEIGHT // 2 :, WIDTH // 2 :] = (40, 40, 200), (220, 220, 220)
    return rows


def clip_with(path, matrix):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "1"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv444p"
        for number in range(4):
            frame = av.VideoFrame.from_ndarray(four_corners(), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    a, b, c, d = (int(value * (1 << 16)) for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("matrix", ORIENTATIONS, ids=str)
def test_turned_and_mirrored_as_the_display_matrix_says(tmp_path, matrix):
    frame = read_video(clip_with(tmp_path / "c.mp4", matrix), KEEP).frames[0]
    expected = torch.from_numpy(ORIENTATIONS[matrix](four_corners()).copy()).permute(2, 0, 1)
    assert frame.shape == expected.shape
    assert (frame.int() - expected.int()).abs().max() <= 8


@pytest.mark.parametrize("matrix", ORIENTATIONS, ids=str)
def test_the_matrix_by_its_definition(tmp_path, matrix):
    a, b, c, d = matrix
    rows = four_corners()
    frame = read_video(clip_with(tmp_path / "c.mp4", matrix), KEEP).frames[0]
    # pixel (x, y) goes to (a x + c y, b x + d y), counted from the smallest that occurs
    ends = [(a * x + c * y, b * x + d * y) for x in (0, WIDTH - 1) for y in (0, HEIGHT - 1)]
    left, top = min(end[0] for end in ends), min(end[1] for end in ends)
    for x, y in ((10, 10), (WIDTH - 10, 10), (10, HEIGHT - 10), (WIDTH - 10, HEIGHT - 10)):
        shown = frame[:, b * x + d * y - top, a * x + c * y - left].int()
        assert (shown - torch.from_numpy(rows[y, x].astype(np.int32))).abs().max() <= 8


def test_the_scale_of_a_matrix_is_not_applied(tmp_path):
    frame = read_video(clip_with(tmp_path / "c.mp4", (0, 2, -2, 0)), KEEP).frames[0]
    assert tuple(frame.shape) == (3, WIDTH, HEIGHT)


def test_a_slanted_matrix_is_refused(tmp_path):
    clip = clip_with(tmp_path / "c.mp4", (0.7071, 0.7071, -0.7071, 0.7071))
    with pytest.raises(MediaError, match="to be shown turned by 45 degrees"):
        read_video(clip, KEEP)


def marked_interlaced(frame: av.VideoFrame) -> av.VideoFrame:
    graph = av.filter.Graph()
    source = graph.add_buffer(width=128, height=64, format=frame.format, time_base=Fraction(1, 25))
    graph.link_nodes(source, graph.add("setfield", "tff"), graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull()


def interlaced_clip(path, codec):
    """A white bar that moves to the right by 8 pixels a field: even rows show its old position, odd rows 8 pixels further."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.height, stream.width, stream.pix_fmt = 64, 128, "yuv420p"
        stream.codec_context.flags |= 1 << 18 | 1 << 29  # interlaced transforms and motion
        stream.codec_context.bit_rate = 4_000_000
        for number in range(6):
            rows = np.full((64, 128, 3), 16, np.uint8)
            for field in (0, 1):
                left = 8 * (2 * number + field)
                rows[field::2, left : left + 24] = 235
            frame = marked_interlaced(av.VideoFrame.from_ndarray(rows, format="rgb24").reformat(format="yuv420p"))
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_one_field_of_an_interlaced_frame_is_shown(tmp_path):
    clip = interlaced_clip(tmp_path / "i.ts", "mpeg2video")
    with av.open(str(clip)) as container:
        frames = list(container.decode(video=0))
    assert all(frame.interlaced_frame for frame in frames)
    for frame in frames:
        woven, shown = frame.to_ndarray(format="gray").astype(int), upright(frame, "i.ts", VideoReformatter())[0].int()
        # woven rows differ from their neighbours where the bar has moved; a moment's picture has the same rows all over
        assert np.abs(np.diff(woven[8:-8], axis=0)).max() > 150
        assert (shown[9:-8] - shown[8:-9]).abs().max() < 40


def test_frames_and_their_threads_do_not_outlive_the_reading(tmp_path):
    clip = clip_with(tmp_path / "c.mp4", (0, 1, -1, 0))
    gc.collect()
    gc.disable()  # the remainder is what only a collection of cycles would free
    try:
        before = len(os.listdir("/proc/self/task"))
        for _ in range(4):
            read_video(clip, KEEP, threads=1)
        assert len(os.listdir("/proc/self/task")) <= before + 2  # a thread that ends may still be listed
    finally:
        gc.enable()
