"""When each frame is shown, from packets alone; clips with impossible times or lengths are refused."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest

from tests.media.drawn import draw, encode, numbers
from trl_perception.media import MediaError, VideoSettings, frames_at, read_video
from trl_perception.media.probe import probe
from trl_perception.media.timeline import Timeline

PIXELS = 56 * 112
FOUR = VideoSettings(nframes=4, max_pixels=PIXELS)
THIRTY = range(30)


def changed(path, change):
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content) or content)
    return path


def copied(source, path, options=None):
    """The same packets in another container."""
    with av.open(str(source)) as given, av.open(str(path), "w", options=options or {}) as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = stream
                made.mux(packet)
    return path


@pytest.mark.parametrize(
    ("times", "asked", "numbers"),
    [
        # a still picture from 1 s to 10 s: the next is not shown before its time
        ([0.0, 1.0, 10.0], [0.0, 0.99, 1.0, 5.6, 9.99, 10.0, 99.0], [0, 0, 1, 1, 1, 2, 2]),
        # rounded to milliseconds: 2 / 30 = 0.0667 s is the frame of 67 ms
        ([0.0, 0.033, 0.067, 0.1], [1 / 30, 2 / 30, 3 / 30], [1, 2, 3]),
        ([0.0], [-1.0, 0.0, 3.0], [0, 0, 0]),
    ],
)
def test_the_frame_on_the_screen_is_the_last_one_shown_by_then(times, asked, numbers):
    timeline = Timeline(np.array(times), 30.0, 0.002, from_keyframe=True)
    assert timeline.shown_at(np.array(asked)) == numbers


@pytest.mark.parametrize("name", ["c.mp4", "c.mkv", "c.ts"])
def test_a_still_stretch_shows_no_frame_before_its_time(tmp_path, name):
    # 10 frames in the first second, then nothing new until 20 s
    clip = encode(tmp_path / name, range(12), milliseconds=[*range(0, 1000, 100), 20000, 20100])
    asked = [0.0, 0.46, 0.95, 5.0, 19.9, 20.0, 20.1]
    shown = numbers_of(frames_at(clip, asked, longest_side=112))
    assert shown == [0, 4, 9, 9, 9, 10, 11]


def numbers_of(frames) -> list[int]:
    import torch

    return numbers(torch.stack(frames))


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("name", ["c.webm", "c.mkv", "c.flv"])
def test_a_clip_with_sound_that_is_cut_is_truncated(tmp_path, name, share):
    codecs = ("libvpx-vp9", "libopus") if name == "c.webm" else ("libx264", "aac")
    clip = with_sound(tmp_path / name, *codecs)
    assert read_video(clip, FOUR).total_frames == 60
    changed(clip, lambda content: content[: int(len(content) * share)])
    with pytest.raises(MediaError, match="truncated: it holds"):
        read_video(clip, FOUR)
    with pytest.raises(MediaError, match="truncated: it holds"):
        probe("video", clip)


def with_sound(path, codec, sound):
    """60 frames at 10 a second, interleaved with 6 s of noise."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream(codec, rate=10), container.add_stream(sound, rate=48000)
        video.height, video.width, video.pix_fmt = 56, 112, "yuv420p"
        for number in range(60):
            frame = av.VideoFrame.from_ndarray(draw(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(video.encode(frame))
            noise = random.normal(0, 0.1, (1, 4800)).astype(np.float32)
            if sound == "libopus":
                part = av.AudioFrame.from_ndarray(noise, format="flt", layout="mono")
            else:
                part = av.AudioFrame.from_ndarray(noise, format="fltp", layout="mono")
            part.sample_rate, part.pts, part.time_base = 48000, 4800 * number, Fraction(1, 48000)
            container.mux(audio.encode(part))
        container.mux(video.encode())
        container.mux(audio.encode())
    return path


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
@pytest.mark.parametrize("share", [0.3, 0.55])
def test_a_capture_that_starts_between_keyframes_is_read_from_the_first(tmp_path, codec, share):
    whole = encode(tmp_path / "whole.ts", range(100), codec=codec, rate=25, gop=20).read_bytes()
    start = int(len(whole) * share) // 188 * 188  # of an MPEG-TS packet
    (tmp_path / "rest.ts").write_bytes(whole[start:])
    clip = read_video(tmp_path / "rest.ts", FOUR)
    first, *_, last = numbers(clip.frames)
    assert last == 99
    with av.open(str(tmp_path / "whole.ts")) as container:
        assert first in [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame][1:]
    assert clip.total_frames == 100 - first
    assert clip.times[0] == 0.0
    assert probe("video", tmp_path / "rest.ts").frames == clip.total_frames


def test_leading_frames_of_an_open_group_are_left_out(tmp_path):
    whole = encode(tmp_path / "o.ts", range(100), codec="mpeg2video", rate=25, gop=20, bf="2").read_bytes()
    (tmp_path / "rest.ts").write_bytes(whole[len(whole) // 2 // 188 * 188 :])
    clip = read_video(tmp_path / "rest.ts", VideoSettings(nframes=30, max_pixels=PIXELS))
    shown = numbers(clip.frames)
    assert shown[-1] == 99
    assert shown[0] == 100 - clip.total_frames


def two_videos(path, order):
    """A large stream at 25 frames a second, and a small picture that changes once a second."""
    with av.open(str(path), "w") as container:
        streams = {}
        for kind in order:
            stream = container.add_stream("mpeg4", rate=25 if kind == "large" else 1)
            stream.height, stream.width = (112, 224) if kind == "large" else (56, 112)
            stream.pix_fmt, stream.bit_rate = "yuv420p", 10**6 if kind == "large" else 10**4
            streams[kind] = stream
        for second in range(4):
            for kind, stream in streams.items():
                for part in range(25 if kind == "large" else 1):
                    frame = av.VideoFrame.from_ndarray(
                        np.full((stream.height, stream.width, 3), 200 if kind == "large" else 20, np.uint8), "rgb24"
                    )
                    frame.pts, frame.time_base = second * 25 + part, Fraction(1, 25)
                    container.mux(stream.encode(frame))
        for stream in streams.values():
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "order"),
    # an MP4 enables its first video alone, which makes it the default
    [("c.mkv", ["large", "small"]), ("c.mkv", ["small", "large"]), ("c.mp4", ["large", "small"])],
)
def test_of_several_videos_the_best_is_read(tmp_path, name, order):
    clip = read_video(two_videos(tmp_path / name, order), FOUR)
    assert clip.total_frames == 100
    assert clip.frames.float().mean().item() == pytest.approx(200, abs=4)
    assert probe("video", tmp_path / name).height == 112


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("frag.mp4", {"movflags": "frag_keyframe+empty_moov"}),
        ("hybrid.mp4", {"movflags": "frag_keyframe"}),
        ("dash.mp4", {"movflags": "dash"}),
        ("c.webm", {"codec": "libvpx-vp9"}),
        ("live.webm", {"codec": "libvpx-vp9", "live": "1"}),
        ("live.mkv", {"live": "1"}),
        ("c.ts", {}),
        ("c.flv", {}),
    ],
)
def test_lengths_without_decoding_are_those_of_the_frames(tmp_path, name, options):
    clip = encode(tmp_path / name, range(50), rate=25, **options)
    facts, read = probe("video", clip), read_video(clip, FOUR)
    assert (facts.frames, facts.fps, facts.seconds) == (50, pytest.approx(25.0), pytest.approx(2.0))
    assert (read.total_frames, read.fps) == (50, facts.fps)


@pytest.mark.parametrize("name", ["c.mp4", "c.webm", "c.mkv"])
def test_a_declared_rate_of_a_thousand_is_no_rate(tmp_path, name):
    # screen recorders declare their clock's rate; 20 frames at 10 a second, their times off by some milliseconds
    codec = "libvpx-vp9" if name == "c.webm" else "libx264"
    shown = [100 * number + 7 * (number % 3) for number in range(20)]
    clip = encode(tmp_path / name, range(20), codec=codec, rate=1000, milliseconds=shown)
    facts = probe("video", clip)
    assert facts.frames == 20
    assert facts.seconds == pytest.approx(2.0, abs=0.11)


def stts(*entries: tuple[int, int]):
    """Write another table of (frames, ticks each) over that of an MP4, whose video has one entry."""

    def change(content: bytearray) -> None:
        place = content.index(b"stts") + 12
        for number, entry in enumerate(entries):
            content[place + 8 * number : place + 8 * number + 8] = struct.pack(">II", *entry)

    return change


@pytest.mark.parametrize("entry", [(30, 0), (30, 0x7FFFFFFF), (30, 1024 | 1 << 24), (1, 1024), (0, 1024)], ids=str)
def test_a_corrupt_time_table_is_refused_where_frames_are_left_out_by_it(tmp_path, entry):
    # with B frames the table decides through an edit list which frames are shown
    clip = changed(encode(tmp_path / "c.mp4", THIRTY, bf="2"), stts(entry))
    with pytest.raises(MediaError, match=r"time table is corrupt|truncated"):
        read_video(clip, FOUR)


def test_without_usable_times_all_frames_are_counted(tmp_path):
    clip = changed(encode(tmp_path / "c.mp4", THIRTY, codec="mpeg4"), stts((1, 1024)))
    read = read_video(clip, VideoSettings(nframes=6, max_pixels=PIXELS))
    assert numbers(read.frames) == [0, 6, 12, 17, 23, 29]
    assert read.total_frames == 30


def test_one_impossible_gap_is_refused(tmp_path):
    # 15 frames of 100 ms, one that is said to last 5 days, 14 more: the header's 3 s are of the whole
    shown = [100 * number for number in range(15)] + [150 * 100 + 100 * number for number in range(15)]
    clip = encode(tmp_path / "c.mp4", THIRTY, codec="mpeg4", milliseconds=shown)
    content = clip.read_bytes()
    place = content.index(b"stts")
    entries = struct.unpack(">I", content[place + 8 : place + 12])[0]
    assert entries == 3  # 14 gaps of 100 ms, the long one, 15 of 100 ms
    wrong = bytearray(content)
    wrong[place + 24 : place + 28] = (432_000_000).to_bytes(4, "big")
    clip.write_bytes(wrong)
    with pytest.raises(MediaError, match=r"its time table is corrupt: its frames take \S+ of 16.50 declared seconds"):
        read_video(clip, FOUR)
