"""Decoded media on disk: the same pixels, whatever happens to the folder."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from trl_perception.media import MediaCache, MediaError, MediaLimits, MediaLoader, MediaRequest, VideoSettings
from trl_perception.media import cache as cache_module
from trl_perception.media import images as images_module
from trl_perception.media import video as video_module
from trl_perception.media.sampling import ClipLimits

FOUR = VideoSettings(nframes=4, max_pixels=56 * 112)
CLIP_BYTES = 4 * 3 * 56 * 112  # four frames of the clips of conftest.py
TWO_CLIPS = (
    2 * CLIP_BYTES * 10 // 9
)  # a bound with room for two files, and for two when files are deleted (15/16 of it)


def video(source, settings=FOUR, **more) -> MediaRequest:
    return MediaRequest("video", source, settings, **more)


@pytest.fixture
def openings(monkeypatch):
    """The files and pictures that a decoder opened."""
    opened = []

    def counted(original, name):
        def opening(medium, *arguments):
            opened.append(str(medium) if len(str(medium)) < 200 else "bytes")
            return original(medium, *arguments)

        return opening

    monkeypatch.setattr(video_module, "opened", counted(video_module.opened, "video"))
    monkeypatch.setattr(images_module, "opened_picture", counted(images_module.opened_picture, "image"))
    return opened


@pytest.fixture
def cache(tmp_path):
    return MediaCache(tmp_path / "kept", 1 << 30)


def assert_equal(medium, wanted):
    if isinstance(wanted, Image.Image):
        assert (medium.mode, medium.size) == (wanted.mode, wanted.size)
        assert medium.tobytes() == wanted.tobytes()
        return
    for name in ("frames", "times"):
        assert torch.equal(getattr(medium, name), getattr(wanted, name))
        assert getattr(medium, name).dtype == getattr(wanted, name).dtype
    for name in ("fps", "indices", "total_frames", "metadata"):
        assert getattr(medium, name) == getattr(wanted, name)


def kept_files(cache, suffix=".frames"):
    return sorted(cache.folder.glob(f"*{suffix}"))


def test_what_was_kept_equals_what_is_decoded_and_opens_no_decoder(clips, pictures, cache, openings):
    requests = [video(clips[name], VideoSettings(fps=3.0)) for name in ("ntsc", "variable", "webm")]
    requests += [
        video(list(np.full((3, 56, 56, 3), 9, np.uint8))),
        video(clips["plain"].read_bytes()),
    ]
    requests += [
        MediaRequest("image", pictures[0]),
        MediaRequest("image", pictures[0], VideoSettings(max_pixels=28 * 56)),
    ]
    requests += [MediaRequest("image", np.full((30, 20), 0.5, np.float32))]
    for request in requests:
        assert cache.read(request)[1]
    found = [request.read() for request in requests]
    openings.clear()
    again = [MediaCache(cache.folder, 1 << 30).read(request) for request in requests]
    assert openings == []
    assert not any(decoded for _, decoded in again)
    for (medium, _), wanted in zip(again, found, strict=True):
        assert_equal(medium, wanted)
    again[0][0].frames.add_(1)  # memory of its own
    assert_equal(cache.read(requests[0])[0], found[0])


def test_the_content_of_a_file_counts_and_not_its_name(clips, cache, tmp_path, monkeypatch, numbers_of):
    reads, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: reads.append(file.name) or digest(file, name))
    first, other = tmp_path / "a.mp4", tmp_path / "b.mp4"
    shutil.copy(clips["plain"], first)
    shutil.copy(clips["plain"], other)
    os.utime(other, ns=(5, 5))
    assert cache.read(video(first))[1]
    assert not cache.read(video(other))[1]
    assert not MediaCache(cache.folder, 1 << 30).read(video({"path": str(first), "bytes": None}))[1]
    assert reads == [str(first), str(other)]  # once for each name, size and time
    shutil.copy(clips["long"], first)
    assert numbers_of(cache.read(video(first))[0].frames) == numbers_of(video(clips["long"]).read().frames)
    assert reads[2:] == [str(first)] * 1


def test_every_setting_makes_another_entry(clips, cache):
    source, limits = clips["plain"], MediaLimits()
    requests = [
        video(source),
        video(source, VideoSettings(nframes=6, max_pixels=56 * 112)),
        video(source, factor=14),
        video(source, size_limits=(784, 3136)),
        video(source, size_limits=ClipLimits(784, 3136)),  # of the whole clip: smaller frames
        video(source, limits=MediaLimits(max_pixels=limits.max_pixels - 1)),
        MediaRequest("image", source.read_bytes()),
    ]
    assert all(cache.read(request)[1] for request in requests[:-1])
    assert len(kept_files(cache)) == len(requests) - 1
    for request in requests[:-1]:
        medium, decoded = cache.read(request)
        assert not decoded
        assert_equal(medium, request.read())
    with pytest.raises(MediaError, match="cannot be read as an image"):
        cache.read(requests[-1])
    with pytest.raises(MediaError, match="media_max_pixels 100"):  # kept under another limit
        cache.read(video(source, limits=MediaLimits(max_pixels=100)))


def test_other_decoders_decode_again(clips, cache, monkeypatch):
    cache.read(video(clips["plain"]))
    monkeypatch.setattr(cache_module, "version", lambda name: "0")
    cache_module._versions.cache_clear()
    assert cache.read(video(clips["plain"]))[1]
    cache_module._versions.cache_clear()


@pytest.mark.parametrize(
    "damage", ["cut", "cut in the header", "empty", "flipped", "flipped shape", "zeros", "another"]
)
def test_a_damaged_file_is_decoded_again(clips, cache, damage):
    request = video(clips["plain"])
    cache.read(request)
    cache.read(video(clips["long"]))
    (file,) = (f for f in kept_files(cache) if f.read_bytes().find(b'"total_frames": 30') > 0)
    data = bytearray(file.read_bytes())
    flipped = {"flipped": len(data) - 1, "flipped shape": data.index(b"[4") + 1}
    if damage in flipped:
        data[flipped[damage]] ^= 1
    changed = {"cut": data[:-1], "cut in the header": data[:20], "empty": b"", "zeros": bytes(len(data))}
    changed["another"] = file.with_suffix(".mp4").name.encode()
    file.write_bytes(changed.get(damage, data))
    medium, decoded = cache.read(request)
    assert decoded
    assert_equal(medium, request.read())
    assert not cache.read(request)[1]  # it was replaced


def test_a_damaged_digest_is_made_again(clips, cache):
    cache.read(video(clips["plain"]))
    cache.read(video(clips["long"]))
    for text in (b"", bytes(64), b"\xff" * 64):
        for note in kept_files(cache, ".digest"):
            note.write_bytes(text)
        assert [cache.read(video(clips[name]))[1] for name in ("plain", "long")] == [False, False]


def test_errors_are_those_without_a_cache_and_are_not_kept(clips, cache, tmp_path, openings):
    (tmp_path / "text.mp4").write_bytes(b"not a video")
    (tmp_path / "empty.mp4").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.mp4")
    sources = [clips["cut_mp4"], tmp_path / "text.mp4", tmp_path / "empty.mp4", tmp_path / "pipe.mp4", tmp_path]
    for source in [*sources, "/nowhere/a.mp4", "a\0b.mp4", b"", 5, [str(clips["plain"])], ["http://[/a.png"]]:
        messages = []
        for read in (MediaRequest.read, cache.read, cache.read):
            with pytest.raises(MediaError) as error:
                read(video(source))
            messages.append(str(error.value))
        assert len(set(messages)) == 1
    assert openings.count(str(clips["cut_mp4"])) == 3
    assert kept_files(cache) == []


def test_the_files_used_longest_ago_are_deleted(clips, tmp_path):
    cache = MediaCache(tmp_path, TWO_CLIPS)
    (tmp_path / "notes.txt").write_text("x" * 100_000)  # not of a cache
    (tmp_path / "left.draft").write_bytes(bytes(CLIP_BYTES))
    (tmp_path / "left.lock").touch()
    for left in ("left.draft", "left.lock"):
        os.utime(tmp_path / left, (1, 1))
    requests = [video(clips[name]) for name in ("plain", "long", "webm")]
    for place in (0, 1, 0, 2):  # the first is newer than the second when the third comes, and only two fit
        cache.read(requests[place])
        time.sleep(0.01)
    assert [cache.read(request)[1] for request in (requests[0], requests[2])] == [False, False]
    assert (
        sum(file.stat().st_size for suffix in (".frames", ".digest") for file in kept_files(cache, suffix))
        <= cache.max_bytes
    )
    assert cache.read(requests[1])[1]
    assert len(kept_files(cache)) == 2
    assert (tmp_path / "notes.txt").exists()
    assert not list(tmp_path.glob("left.*"))


def test_what_is_larger_than_the_cache_is_not_kept(clips, tmp_path):
    cache = MediaCache(tmp_path, CLIP_BYTES)
    assert [cache.read(video(clips["plain"]))[1] for _ in range(2)] == [True, True]
    assert kept_files(cache) == []


def test_files_may_vanish_at_any_time(clips, cache, monkeypatch):
    cache.read(video(clips["plain"]))
    touch = os.utime
    monkeypatch.setattr(os, "utime", lambda path, *times: os.unlink(path) or touch(path, *times))
    for _ in range(3):  # the digest and the frames are deleted as they are read
        assert_equal(cache.read(video(clips["plain"]))[0], video(clips["plain"]).read())


def test_a_file_that_changes_while_it_is_read_is_not_kept(clips, cache, tmp_path, monkeypatch):
    path, read = tmp_path / "a.mp4", MediaRequest.read
    shutil.copy(clips["plain"], path)

    def replaced(request, threads=None):
        shutil.copy(clips["long"], path)
        return read(request, threads)

    monkeypatch.setattr(MediaRequest, "read", replaced)
    cache.read(video(path))
    assert kept_files(cache) == []


def test_a_folder_that_cannot_be_written_is_an_error(clips, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match=r"media cache .*file/kept cannot be written .* media_cache_dir_gb"):
        MediaCache(tmp_path / "file" / "kept", 1 << 30).read(video(clips["plain"]))


def test_a_url_is_known_by_its_content(clips, cache, tmp_path, openings, monkeypatch):
    shutil.copy(clips["plain"], tmp_path / "a.mp4")
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        request = video(f"http://127.0.0.1:{server.server_port}/a.mp4")
        assert cache.read(request)[1]
        openings.clear()
        medium, decoded = cache.read(request)
        assert (decoded, openings) == (False, [])
        assert_equal(medium, video(clips["plain"]).read())
        assert not cache.read(video(clips["plain"]))[1]
        (tmp_path / "a.mp4").write_bytes(b"not a video")
        with pytest.raises(MediaError, match=r"^http://127.0.0.1:.*/a.mp4: decoding failed"):
            cache.read(request)
        server.shutdown()


def test_a_loader_counts_what_came_from_disk(clips, cache, openings):
    MediaLoader(read=cache.read).load([video(clips["plain"])])
    openings.clear()
    loader = MediaLoader(read=cache.read)
    for _ in range(2):
        loader.load([video(clips["plain"]), video("/nowhere/a.mp4")])
    assert loader.stats == {"decoded": 0, "disk_hits": 1, "cache_hits": 1, "failed": 2}
    assert openings == []


def at_once(count, task):
    """Run a task in as many threads; the results."""
    with ThreadPoolExecutor(count) as pool:
        return [running.result(timeout=60) for running in [pool.submit(task) for _ in range(count)]]


@pytest.fixture
def slow_reads(monkeypatch):
    """The sources that were decoded; each of them takes a while."""
    decoded, read = [], MediaRequest.read

    def reading(request, threads=None):
        decoded.append(str(request.source))
        time.sleep(0.1)
        return read(request, threads)

    monkeypatch.setattr(MediaRequest, "read", reading)
    return decoded


def test_what_several_want_at_once_is_made_once(clips, tmp_path, monkeypatch, slow_reads):
    reads, digest = [], hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, name: reads.append(file.name) or time.sleep(0.1) or digest(file, name)
    )
    found = at_once(8, lambda: MediaCache(tmp_path, 1 << 30).read(video(clips["plain"])))
    assert reads == slow_reads == [str(clips["plain"])]
    assert sorted(decoded for _, decoded in found) == [False] * 7 + [True]
    for medium, _ in found:
        assert_equal(medium, found[0][0])
    assert not list(tmp_path.glob("*.lock"))


def test_nobody_waits_for_another_medium(clips, cache, monkeypatch):
    together, read = threading.Barrier(3), MediaRequest.read
    monkeypatch.setattr(MediaRequest, "read", lambda *args: together.wait(30) + 1 and read(*args))
    waiting = iter([video(clips[name]) for name in ("plain", "long", "webm")])
    assert all(decoded for _, decoded in at_once(3, lambda: cache.read(next(waiting))))


def test_those_who_waited_in_vain_decode_side_by_side(clips, cache, monkeypatch):
    begun, together, read = threading.Semaphore(1), threading.Barrier(3), MediaRequest.read
    came, own, lock = Counter(), threading.local(), cache_module._lock

    def locking(file):
        own.name = file.name
        came[file.name] += 1
        return lock(file)

    def reading(*args):
        if begun.acquire(blocking=False):
            until = time.monotonic() + 30
            while came[own.name] < 4 and time.monotonic() < until:
                time.sleep(0.01)
            time.sleep(0.1)  # from there to the lock it is one call
        else:
            together.wait(30)
        return read(*args)

    def error():
        with pytest.raises(MediaError) as error:
            cache.read(video(clips["cut_mp4"]))
        return str(error.value)

    with monkeypatch.context() as patch:
        patch.setattr(MediaRequest, "read", reading)
        patch.setattr(cache_module, "_lock", locking)
        (said,) = {*at_once(4, error)}
    with pytest.raises(MediaError) as error_without:
        video(clips["cut_mp4"]).read()
    assert said == str(error_without.value)
    assert not list(cache.folder.glob("*.lock"))


READS = """
import sys, torch
torch.set_num_threads(1)
from trl_perception.media import MediaCache, MediaRequest, VideoSettings
cache = MediaCache(sys.argv[1], int(sys.argv[2]))
for turn in range(3):
    for path in sys.argv[3:]:
        request = MediaRequest("video", path, VideoSettings(nframes=4, max_pixels=56 * 112))
        assert torch.equal(cache.read(request, 1)[0].frames, request.read(1).frames)
"""


@pytest.mark.slow
def test_processes_share_a_folder_that_is_too_small(clips, tmp_path):
    bound, paths = TWO_CLIPS, [str(clips[name]) for name in ("plain", "long", "webm")]
    command = [sys.executable, "-c", READS, str(tmp_path), str(bound)]
    running = [subprocess.Popen([*command, *paths[turn:], *paths[:turn]]) for turn in range(2)]
    assert [process.wait(300) for process in running] == [0, 0]
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= bound
    assert not [*tmp_path.glob("*.draft"), *tmp_path.glob("*.lock")]


STAYS = """
import sys, time
from trl_perception.media import MediaCache, MediaRequest, VideoSettings
MediaRequest.read = lambda *_: (print("decodes", flush=True), time.sleep(600))
MediaCache(sys.argv[1], 1 << 30).read(MediaRequest("video", sys.argv[2], VideoSettings(nframes=4, max_pixels=56 * 112)))
"""


@pytest.mark.slow
def test_nobody_waits_for_a_process_that_was_killed(clips, cache):
    command = [sys.executable, "-c", STAYS, str(cache.folder), str(clips["plain"])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "decodes\n"
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(cache.read, video(clips["plain"]))
            time.sleep(0.5)
            assert not waiting.done()
            holder.kill()
            assert waiting.result(timeout=60)[1]
    assert not cache.read(video(clips["plain"]))[1]
