import os
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image

from trl_perception.media import loader as loader_module
from trl_perception.media.container import BudgetedContainer
from trl_perception.media.errors import MediaError
from trl_perception.media.limits import Budget
from trl_perception.media.loader import MediaLoader, MediaRequest, fingerprint
from trl_perception.media.sampling import VideoSettings
from trl_perception.media.video import VideoClip

CELL = 28 * 28
TWO = VideoSettings(nframes=2, max_pixels=56 * 112)
CLIP_BYTES = 2 * 3 * 56 * 112  # two frames of the clips of conftest.py


def video(source, settings=TWO, **more) -> MediaRequest:
    return MediaRequest("video", source, settings, **more)


def test_results_keep_the_order_of_the_requests(clips, numbers_of):
    requests = [
        video(clips["long"]),
        MediaRequest("image", Image.new("RGB", (30, 20), (9, 8, 7))),
        video("/nowhere/a.mp4"),
        video(clips["plain"]),
    ]
    long, image, missing, plain = MediaLoader(workers=3).load(requests)
    assert numbers_of(long.frames) == [0, 239]
    assert (image.size, image.getpixel((0, 0))) == ((30, 20), (9, 8, 7))
    assert isinstance(missing, MediaError)
    assert missing.source == "/nowhere/a.mp4"
    assert numbers_of(plain.frames) == [0, 29]


def test_equal_requests_are_decoded_once(clips):
    loader = MediaLoader(workers=2)
    first, second, other = loader.load(
        [video(clips["plain"]), video(str(clips["plain"])), video(clips["plain"], factor=14)]
    )
    assert first is second
    assert other is not first
    assert loader.stats == {"decoded": 2, "cache_hits": 0, "failed": 0}
    assert loader.load([video(clips["plain"])])[0] is first
    assert loader.stats == {"decoded": 2, "cache_hits": 1, "failed": 0}


def test_errors_are_tried_again(clips, tmp_path):
    loader = MediaLoader()
    path = tmp_path / "later.mp4"
    failed, same = loader.load([video(path), video(path)])
    assert failed is same
    assert isinstance(failed, MediaError)
    assert loader.stats == {"decoded": 0, "cache_hits": 0, "failed": 1}
    shutil.copy(clips["plain"], path)
    assert isinstance(loader.load([video(path)])[0], VideoClip)


def test_a_changed_file_is_read_again(clips, tmp_path, numbers_of):
    loader, path = MediaLoader(), tmp_path / "a.mp4"
    shutil.copy(clips["plain"], path)
    assert numbers_of(loader.load([video(path)])[0].frames) == [0, 29]
    shutil.copy(clips["long"], path)
    os.utime(path, ns=(1, 1))
    assert numbers_of(loader.load([video(path)])[0].frames) == [0, 239]


def test_the_cache_drops_what_was_not_used_for_longest(clips):
    loader = MediaLoader(workers=1, cache_bytes=2 * CLIP_BYTES)
    a, b, c = (video(clips[name]) for name in ("plain", "long", "webm"))
    for request in (a, b, a, c):  # a is newer than b when c comes, and only two fit
        loader.load([request])
    assert loader.stats == {"decoded": 3, "cache_hits": 1, "failed": 0}
    loader.load([a, c])
    assert loader.stats == {"decoded": 3, "cache_hits": 3, "failed": 0}
    loader.load([b])
    assert loader.stats == {"decoded": 4, "cache_hits": 3, "failed": 0}


def test_what_is_larger_than_the_cache_is_not_kept(clips):
    loader = MediaLoader(cache_bytes=CLIP_BYTES - 1)
    for _ in range(2):
        loader.load([video(clips["plain"])])
    assert loader.stats["decoded"] == 2
    # an image counts 3 bytes a pixel: 10 * 10 * 3 = 300
    small = MediaLoader(cache_bytes=300)
    for _ in range(2):
        small.load([MediaRequest("image", Image.new("RGB", (10, 10)))])
    assert small.stats == {"decoded": 1, "cache_hits": 1, "failed": 0}


def test_media_are_read_in_parallel(monkeypatch):
    together = threading.Barrier(3, timeout=60)  # passes only where three readers wait at once

    def wait(source, **_):
        together.wait()
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(loader_module, "read_image", wait)
    results = MediaLoader(workers=3).load([MediaRequest("image", bytes([number])) for number in range(3)])
    assert [result.size for result in results] == [(1, 1)] * 3


def test_threads_that_ask_for_the_same_medium_share_one_reading(monkeypatch):
    calls = []

    def slow(source, **_):
        calls.append(source)
        time.sleep(0.2)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(loader_module, "read_image", slow)
    loader, results = MediaLoader(), []
    threads = [
        threading.Thread(target=lambda: results.extend(loader.load([MediaRequest("image", b"x")]))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 1
    assert len(results) == 4
    assert all(result is results[0] for result in results)


def test_a_bug_is_no_unreadable_medium(monkeypatch):
    def broken(source, **_):
        raise KeyError("bug")

    monkeypatch.setattr(loader_module, "read_image", broken)
    loader = MediaLoader()
    for _ in range(2):  # the second call must not wait for the first
        with pytest.raises(KeyError, match="bug"):
            loader.load([MediaRequest("image", b"x")])


def test_requests_pass_on_their_settings(picture):
    frames = np.stack([picture(number) for number in range(4)])
    request = video(frames, VideoSettings(), factor=14, size_limits=(196, 28 * 56), source_fps=8.0)
    clip = MediaLoader().load([request])[0]
    # 28x56 has the shape of 56x112 and exactly the pixels allowed
    assert tuple(clip.frames.shape) == (4, 3, 28, 56)
    assert clip.times.tolist() == [0.0, 0.125, 0.25, 0.375]


def test_bounds_of_an_image_come_from_settings_then_limits():
    image = Image.new("RGB", (560, 560))
    limited = MediaRequest("image", image, size_limits=(4 * CELL, 100 * CELL))
    bounded = MediaRequest("image", image, VideoSettings(max_pixels=25 * CELL), size_limits=(4 * CELL, 100 * CELL))
    sized = MediaRequest("image", image, VideoSettings(resized_height=60, resized_width=100))
    results = MediaLoader().load([limited, bounded, MediaRequest("image", image), sized])
    # 10 * 28, 5 * 28, untouched; 60x100 to the nearest multiples of 28
    assert [result.size for result in results] == [(280, 280), (140, 140), (560, 560), (112, 56)]


def test_a_decoder_object_is_not_kept():
    class Decoder:
        def __init__(self):
            self.metadata = type("Metadata", (), {"num_frames": 4, "average_fps": 2.0})

        def get_frames_at(self, indices):
            return type("Batch", (), {"data": torch.zeros(len(indices), 3, 56, 112, dtype=torch.uint8)})

    loader, request = MediaLoader(), video(Decoder())
    for _ in range(2):
        loader.load([request])
    assert loader.stats["decoded"] == 2


def test_keys_depend_on_contents_and_not_on_identity(tmp_path):
    frames = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    assert fingerprint(frames) == fingerprint(frames.copy()) == fingerprint(torch.from_numpy(frames))
    assert fingerprint(frames) != fingerprint(frames[::-1])
    assert fingerprint(frames) != fingerprint(frames.reshape(2, 2, 8, 3))
    assert fingerprint(list(frames)) == fingerprint(list(frames.copy()))
    assert fingerprint(b"ab") == fingerprint(bytearray(b"ab")) == fingerprint({"path": "x", "bytes": b"ab"})
    assert fingerprint(b"ab") != fingerprint(b"ac")
    (tmp_path / "a.mp4").write_bytes(b"ab")
    path = tmp_path / "a.mp4"
    assert fingerprint(path) == fingerprint(str(path)) == fingerprint(path.as_uri())
    assert fingerprint(Image.new("RGB", (2, 2))) == fingerprint(Image.new("RGB", (2, 2)))
    red, green = Image.new("P", (2, 2), 0), Image.new("P", (2, 2), 0)
    red.putpalette([255, 0, 0])
    green.putpalette([0, 255, 0])
    assert fingerprint(red) != fingerprint(green)


def test_keys_depend_on_settings():
    base = video(b"x")
    assert base.key == video(b"x").key
    others = [
        video(b"x", VideoSettings(nframes=4)),
        video(b"x", factor=14),
        video(b"x", size_limits=(1, 2)),
        video(b"x", source_fps=3.0),
        MediaRequest("image", b"x", TWO),
    ]
    assert len({base.key, *(other.key for other in others)}) == 6


def test_an_unreadable_image_object_is_returned_as_an_error(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:2000])
    loader = MediaLoader()
    with Image.open(path) as image:
        assert isinstance(loader.load([MediaRequest("image", image)])[0], MediaError)
    assert loader.stats["failed"] == 1


def test_wrong_requests_are_refused():
    with pytest.raises(ValueError, match="kind is 'audio'"):
        MediaRequest("audio", b"x")
    for rate in (0, "2", float("nan")):
        with pytest.raises(ValueError, match=r"source_fps \(sample_fps of a block\) is"):
            MediaRequest("video", b"x", source_fps=rate)
    with pytest.raises(ValueError, match="workers is 0"):
        MediaLoader(workers=0)
    with pytest.raises(ValueError, match="cache_bytes is -1"):
        MediaLoader(cache_bytes=-1)


def test_no_requests():
    assert MediaLoader().load([]) == []


@pytest.mark.parametrize(
    ("processors", "workers", "threads"),
    [(16, 4, 4), (16, 3, 5), (2, 8, 1), (None, 2, 1), (16, None, 2)],  # None: 8 workers, 16 / 8
)
def test_decoders_share_the_processors(clips, monkeypatch, processors, workers, threads):
    monkeypatch.setattr(os, "cpu_count", lambda: processors)
    seen, original = [], BudgetedContainer.decode

    def spied(self, stream, *args, **options):
        seen.append(stream.codec_context.thread_count)
        return original(self, stream, *args, **options)

    monkeypatch.setattr(BudgetedContainer, "decode", spied)
    MediaLoader(workers=workers).load([video(clips["plain"])])
    assert set(seen) == {threads}


def test_a_clip_read_alone_has_all_processors(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    assert Budget("a.mp4").threads == 3
    assert Budget("a.mp4", threads=2).threads == 2
