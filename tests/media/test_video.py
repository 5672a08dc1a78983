import dataclasses
import io
import sys
import types

import av
import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils import vision_process

from trl_perception.media import video
from trl_perception.media.container import BudgetedContainer
from trl_perception.media.errors import MediaError
from trl_perception.media.sampling import VideoSettings
from trl_perception.media.timeline import packet_timeline
from trl_perception.media.video import read_video

HEIGHT, WIDTH = 56, 112  # of the clips in conftest.py
PIXELS = HEIGHT * WIDTH  # as max_pixels, it leaves them at their own size
SIX = VideoSettings(nframes=6, max_pixels=PIXELS)
# 30 frames, 29 / 5 = 5.8 apart: 0, 5.8, 11.6, 17.4, 23.2, 29
SIX_OF_THIRTY = [0, 6, 12, 17, 23, 29]


class Decoder:
    """The part of torchcodec's VideoDecoder that is used, backed by an array."""

    def __init__(self, frames, fps):
        self.frames = frames
        self.metadata = types.SimpleNamespace(num_frames=len(frames), average_fps=fps, begin_stream_seconds=1.0)

    def get_frames_at(self, indices):
        times = 1.0 + torch.tensor(indices, dtype=torch.float64) / self.metadata.average_fps
        return types.SimpleNamespace(data=self.frames[indices], pts_seconds=times)


@pytest.mark.parametrize("name", ["plain", "late_start", "webm", "vp8", "avi", "stream", "rawest"])
def test_constant_rate_gives_the_frames_of_the_index_rule(clips, numbers_of, name):
    clip = read_video(clips[name], SIX)
    assert numbers_of(clip.frames) == clip.indices == SIX_OF_THIRTY
    assert clip.frames.dtype == torch.uint8
    assert tuple(clip.frames.shape) == (6, 3, HEIGHT, WIDTH)
    fps = 30.0 if name == "vp8" else 10.0
    assert clip.fps == pytest.approx(fps)
    # times count from the first shown frame, also where the stream starts at 2 s; WebM rounds them to milliseconds
    assert clip.times.tolist() == pytest.approx([number / fps for number in SIX_OF_THIRTY], abs=6e-4)
    assert clip.times.dtype == torch.float64


def test_sampling_by_fps_at_a_broken_rate(clips, numbers_of):
    clip = read_video(clips["ntsc"], VideoSettings(fps=5.0, max_pixels=PIXELS))
    # 60 frames at 30000/1001 last 2.002 s; 2.002 * 5 = 10.01 -> 10 frames, 59 / 9 = 6.56 apart
    assert numbers_of(clip.frames) == [0, 7, 13, 20, 26, 33, 39, 46, 52, 59]
    assert clip.times[-1].item() == pytest.approx(59 * 1001 / 30000)


def test_variable_rate_is_uniform_in_time(clips, numbers_of):
    clip = read_video(clips["variable"], VideoSettings(nframes=4, max_pixels=PIXELS))
    # 20 frames in 10.1 s (the last lasts 0.1 s) are 1.980 per second; indices 0, 6.3, 12.7, 19 -> 0, 6, 13, 19 ask for
    # 0, 3.03, 6.565, 9.595 s; frame 10 is shown at 1 s and each later one after a second: on the screen are those of 0,
    # 3, 6 and 9 s. By number they would be frames 6 (0.6 s), 13 (4 s) and 19.
    assert clip.indices == [0, 6, 13, 19]
    assert numbers_of(clip.frames) == [0, 12, 15, 18]
    assert clip.times.tolist() == pytest.approx([0.0, 3.0, 6.0, 9.0])
    assert clip.metadata.timestamps == pytest.approx([0.0, 3.03, 6.565, 9.595])


def test_frames_before_an_edit_are_not_shown(clips, numbers_of, monkeypatch):
    monkeypatch.setattr(video, "SEEK_GAP", 0)
    monkeypatch.delattr(video, "decoded_timeline")  # packets suffice: no second pass over the file
    clip = read_video(clips["edited"], VideoSettings(nframes=4, max_pixels=PIXELS))
    # frames 0..19 lie before time 0, and 0..11 before the keyframe that is needed, so that 28 of 40 declared frames are
    # there: no truncation, for the declared 2 s are. Of the 20 shown, numbers 20..39: 0, 6.3, 12.7, 19
    assert clip.total_frames == 20
    assert numbers_of(clip.frames) == [20, 26, 33, 39]


def test_range_keeps_file_times_and_its_own_rate(clips, numbers_of):
    clip = read_video(clips["long"], VideoSettings(nframes=4, video_start=20.05, video_end=22.0, max_pixels=PIXELS))
    # ceil(200.5) = 201 to floor(220) = 220 are 20 frames: 201, 207.3, 213.7, 220
    assert numbers_of(clip.frames) == clip.indices == [201, 207, 214, 220]
    assert clip.total_frames == 20
    assert clip.times.tolist() == pytest.approx([20.1, 20.7, 21.4, 22.0])
    assert clip.metadata.timestamps == pytest.approx(clip.times.tolist())
    # 4 frames of 20 at 10 per second: 2 per second
    assert clip.metadata.sampled_fps == pytest.approx(2.0)


def decoded_frames(monkeypatch) -> list[int]:
    """Presentation timestamps of every frame that PyAV hands over from now on."""
    seen = []
    original = BudgetedContainer.decode

    def spied(*args, **options):
        for frame in original(*args, **options):
            seen.append(frame.pts)
            yield frame

    monkeypatch.setattr(BudgetedContainer, "decode", spied)
    return seen


@pytest.mark.parametrize("gap", [0, 32, 10**9])
def test_seeking_never_changes_the_frames(clips, numbers_of, monkeypatch, gap):
    monkeypatch.setattr(video, "SEEK_GAP", gap)
    clip = read_video(clips["long"], VideoSettings(nframes=12, max_pixels=PIXELS))
    # 239 / 11 = 21.73 apart
    assert numbers_of(clip.frames) == [0, 22, 43, 65, 87, 109, 130, 152, 174, 196, 217, 239]


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("c.mp4", "libx264"),
        ("c.mp4", "libsvtav1"),
        ("c.webm", "libsvtav1"),
        ("c.webm", "libvpx"),
        ("c.mkv", "libvpx-vp9"),
        ("c.avi", "mpeg4"),
        ("c.ts", "mpeg2video"),
        ("c.ts", "libx264"),
        ("c.flv", "flv"),
    ],
)
def test_frames_are_decoded_once_and_only_from_the_keyframe_before(
    tmp_path, write_clip, numbers_of, monkeypatch, name, codec
):
    clip = write_clip(tmp_path / name, range(120), codec=codec, gop=20, rate=25)
    seen = decoded_frames(monkeypatch)
    assert numbers_of(read_video(clip, VideoSettings(nframes=2, max_pixels=PIXELS)).frames) == [0, 119]
    assert len(seen) <= 1 + 20 + 1  # frame 0, and from a seek on frames 100..119; each once
    seen.clear()
    # at 25 a second, 4 s to 4.4 s are frames 100..110
    window = VideoSettings(nframes=2, video_start=4.0, video_end=4.4, max_pixels=PIXELS)
    assert numbers_of(read_video(clip, window).frames) == [100, 110]
    assert len(seen) <= 11 + 20  # a keyframe lies at most 20 before
    seen.clear()
    read_video(clip, VideoSettings(nframes=120, max_pixels=PIXELS))
    assert len(seen) == 120


def test_packets_that_promise_unshown_frames_are_counted_again(clips, numbers_of, monkeypatch):
    def lying(*args):
        honest = packet_timeline(*args)
        packets = [*honest.packets, honest.packets[-1]._replace(pts=honest.packets[-1].pts + 1024)]
        return dataclasses.replace(honest, times=np.append(honest.times, 3.0), packets=packets)

    monkeypatch.setattr(video, "packet_timeline", lying)
    clip = read_video(clips["plain"], SIX)
    assert clip.total_frames == 30
    assert numbers_of(clip.frames) == SIX_OF_THIRTY


def test_frames_out_of_turn_are_counted_again(tmp_path, write_clip, numbers_of):
    # AVI has no presentation times: those of its packets are in order of decoding, and H.264 shows another order
    clip = write_clip(tmp_path / "c.avi", range(30), codec="libx264", rate=25)
    assert numbers_of(read_video(clip, SIX).frames) == SIX_OF_THIRTY


def test_rotation_is_applied(clips):
    clip = read_video(clips["turned"], VideoSettings(max_pixels=PIXELS))
    # number 15 is black on the left and 240 on the right; a clockwise rotation by 90 degrees puts the left on top
    assert tuple(clip.frames.shape[-2:]) == (WIDTH, HEIGHT)
    assert clip.frames[0, :, 10, 28].max() < 20
    assert clip.frames[0, :, 100, 28].min() > 220


def test_longer_sound_is_no_truncation(clips, numbers_of):
    clip = read_video(clips["with_sound"], VideoSettings(nframes=2, max_pixels=PIXELS))
    assert numbers_of(clip.frames) == [0, 9]


def test_one_frame_clip(clips, numbers_of):
    clip = read_video(clips["one_frame"], VideoSettings(max_pixels=PIXELS))
    assert numbers_of(clip.frames) == [7]
    assert (clip.indices, clip.total_frames, clip.times.tolist()) == ([0], 1, [0.0])


@pytest.mark.parametrize("form", ["str", "path", "file_url", "bytes", "mapping_bytes", "mapping_path"])
def test_forms_of_a_file(clips, numbers_of, form):
    path = clips["plain"]
    source = {
        "str": str(path),
        "path": path,
        "file_url": path.as_uri(),
        "bytes": path.read_bytes(),
        "mapping_bytes": {"path": "gone.mp4", "bytes": path.read_bytes()},
        "mapping_path": {"path": str(path), "bytes": None},
    }[form]
    assert numbers_of(read_video(source, SIX).frames) == SIX_OF_THIRTY


def test_arrays_and_lists_keep_all_their_frames(tmp_path, numbers_of, picture):
    array = np.stack([picture(number) for number in range(5)])
    Image.fromarray(array[3]).save(tmp_path / "3.png")
    listed = [Image.fromarray(frame) for frame in array[:3]] + [str(tmp_path / "3.png"), array[4]]
    settings = VideoSettings(fps=0.1, max_pixels=PIXELS)
    channels_first = torch.from_numpy(array).permute(0, 3, 1, 2)
    for source in (array, torch.from_numpy(array), channels_first, array / 255, channels_first / 255, listed):
        clip = read_video(source, settings, source_fps=4.0)
        assert numbers_of(clip.frames) == clip.indices == [0, 1, 2, 3, 4]
        assert clip.times.tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert clip.metadata.sampled_fps == 4.0
    # 5 frames, at most 4: 0, 1.33, 2.67, 4
    assert numbers_of(read_video(listed, VideoSettings(max_frames=4, max_pixels=PIXELS)).frames) == [0, 1, 3, 4]


@pytest.mark.parametrize(
    "block", [{}, {"fps": 1.0, "max_frames": 6}, {"nframes": 8, "max_pixels": 40 * 784, "min_pixels": 784}]
)
@pytest.mark.parametrize("extra", [{}, {"video_start": 1.0, "video_end": 3.5}, {"total_pixels": 900 * 784}])
def test_frames_and_metadata_are_those_of_qwen_vl_utils(monkeypatch, block, extra):
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 3, 90, 150), dtype=np.uint8))
    package, module = types.ModuleType("torchcodec"), types.ModuleType("torchcodec.decoders")
    module.VideoDecoder = lambda path, num_ffmpeg_threads: Decoder(frames, 10.0)
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)
    monkeypatch.setattr(vision_process, "get_video_reader_backend", lambda: "torchcodec")
    ele = {"type": "video", "video": "clip.mp4", **block, **extra}
    (expected, metadata), sample_fps = vision_process.fetch_video(
        ele, return_video_sample_fps=True, return_video_metadata=True
    )
    clip = read_video(Decoder(frames, 10.0), VideoSettings().override(ele))
    assert torch.equal(clip.frames.float(), expected)
    assert clip.indices == metadata["frames_indices"]
    assert clip.total_frames == metadata["total_num_frames"]
    assert clip.metadata.sampled_fps == pytest.approx(sample_fps)
    # the stand-in starts at 1 s, and times count from there
    assert clip.times.tolist() == pytest.approx([index / 10 for index in clip.indices])


def test_bytes_of_the_frames(picture):
    # 2 frames * 3 colours * 56 * 112 pixels, a byte each
    assert read_video(np.stack([picture(0), picture(1)]), VideoSettings(max_pixels=PIXELS)).nbytes == 2 * 3 * 56 * 112


def test_a_damaged_stream_is_refused(tmp_path, write_clip):
    content = bytearray(write_clip(tmp_path / "a.mp4", range(30), movflags="faststart").read_bytes())
    start = content.index(b"mdat") + 200
    content[start : start + 600] = bytes(600)
    with pytest.raises(MediaError, match="decoding failed"):
        read_video(bytes(content))


def unread(clips, name, picture):
    folder = clips["plain"].parent
    if name == "empty file":
        (folder / "empty.mp4").touch()
        return folder / "empty.mp4"
    if name == "not a video":
        (folder / "words.mp4").write_text("these are words " * 100)
        return folder / "words.mp4"
    others = {
        "missing": "/nowhere/film.mp4",
        "folder": folder,
        "no bytes": b"",
        "empty mapping": {"path": None, "bytes": None},
        "number": 5,
        "empty array": np.zeros((0, 56, 56, 3), np.uint8),
        "flat array": np.zeros((56, 56, 3), np.uint8),
        "scalar": np.zeros((), np.uint8),
        "integers": np.zeros((2, 56, 56, 3), np.int64),
        "bright floats": np.full((2, 56, 56, 3), 255.0),
        "nan floats": np.full((2, 56, 56, 3), np.nan),
        "empty list": [],
        "unequal list": [picture(0), picture(1)[:28]],
        "missing frame": ["/nowhere/1.png"],
    }
    return others[name] if name in others else clips[name]


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("missing", "/nowhere/film.mp4", "No such file"),
        ("folder", "clips", "not a file"),
        ("empty file", "empty.mp4", "the file is empty"),
        ("no bytes", r"bytes \(0 B\)", "it is empty"),
        ("not a video", "words.mp4", "not a video"),
        ("sound_only", "sound_only.mp4", "it has audio streams, and a video stream is wanted"),
        ("cut_mp4", "cut.mp4", "truncated"),
        ("cut_mkv", "cut.mkv", r"truncated: it holds \S+ of 3.00 declared seconds"),
        ("empty mapping", "mapping", "neither path nor bytes"),
        ("number", "5", "a int was given"),
        ("empty array", r"array \(0, 56, 56, 3\)", "no video frame"),
        ("flat array", r"array \(56, 56, 3\)", r"\(F,H,W,3\) or \(F,3,H,W\) is wanted"),
        ("scalar", r"array \(\)", "was given"),
        ("integers", "array", "int64, and uint8 or float is wanted"),
        ("bright floats", "array", r"run from 255 to 255, and \[0, 1\] is wanted"),
        ("nan floats", "array", "run from nan"),
        ("empty list", "0 frames", "no video frame"),
        ("unequal list", "2 frames", r"frame 1 has \(112, 28\) pixels"),
        ("missing frame", "/nowhere/1.png", "No such file"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(clips, name, source, reason, picture):
    with pytest.raises(MediaError, match=reason) as caught:
        read_video(unread(clips, name, picture))
    assert caught.match(source)


def test_bad_ranges_of_a_file_are_refused(clips):
    for start, end, reason in ((3.0, None, "past the end"), (0.0, 0.05, "fewer than two")):
        with pytest.raises(MediaError, match=reason):
            read_video(clips["plain"], VideoSettings(video_start=start, video_end=end))


def test_a_decoder_that_fails_is_refused():
    class Broken(Decoder):
        def get_frames_at(self, indices):
            raise RuntimeError("no more packets")

    with pytest.raises(MediaError, match="no more packets"):
        read_video(Broken(torch.zeros(8, 3, 56, 56, dtype=torch.uint8), 4.0))
    with pytest.raises(MediaError, match="declares 0 frames"):
        read_video(Decoder(torch.zeros(0, 3, 56, 56, dtype=torch.uint8), 4.0))


def test_a_cover_picture_is_no_video(tmp_path):
    cover = io.BytesIO()
    Image.new("RGB", (16, 16)).save(cover, "JPEG")
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=16000)
        art = container.add_stream("mjpeg", rate=1)
        art.width = art.height = 16
        art.pix_fmt = "yuvj420p"
        art.disposition = av.stream.Disposition.attached_pic
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 16000
        container.mux(sound.encode(silence))
        container.mux(sound.encode())
        packet = av.Packet(cover.getvalue())
        packet.stream, packet.pts, packet.dts, packet.time_base = art, 0, 0, art.time_base
        container.mux(packet)
    with pytest.raises(MediaError, match="a video stream is wanted"):
        read_video(tmp_path / "song.mp4")
