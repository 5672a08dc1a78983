"""Media that are read ahead: in order, with the pixels and errors of their turn, by processes that end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import count

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from tests.media.beside import Beside
from trl_perception.assets import model_path
from trl_perception.families import family_of_processor
from trl_perception.media import MediaCache, MediaError, MediaLoader, MediaRequest, RowsAhead, VideoSettings
from trl_perception.media import loader as loader_module
from trl_perception.media.loader import Reading

TWO = VideoSettings(nframes=2, max_pixels=56 * 112)


def video(source, settings=TWO, **more) -> MediaRequest:
    return MediaRequest("video", source, settings, **more)


def rollouts(number, micro_steps):
    """A batch object for each micro-step, whose rows name their rollout."""
    return [[rollout] for rollout in range(number) for _ in range(micro_steps)]


def followers(ahead, loader, micro_step, step, begins):
    """Run a loader's batches in optimisation steps of `step` batches: what follows each rollout, as it begins."""
    source, found = iter(loader), []
    for first in range(micro_step, micro_step + len(loader), step):
        batches = ahead.over(source, first)
        for number, batch in enumerate([next(batches) for _ in range(step)], first):
            if number % begins == 0:
                found.append((batch, ahead.after(batch)))
    return found


@pytest.mark.parametrize("step", [1, 3, 6])  # a part of a rollout, a rollout, two of them
def test_the_rows_of_the_next_rollouts_are_known(step):
    batches = rollouts(6, 3)
    found = followers(RowsAhead(2, 3), batches, 0, step, 3)
    # the first batch of each rollout is what it begins with
    wanted = [(batches[3 * i], batches[3 * i + 3 : 3 * i + 9 : 3]) for i in range(6)]
    assert len(found) == 6
    for (batch, following), (same, then) in zip(found, wanted, strict=True):
        assert batch is same
        assert list(map(id, following)) == list(map(id, then))


def test_a_loader_is_read_no_further_than_needed():
    taken, ahead = [], RowsAhead(2, 3)
    batches = ahead.over((taken.append(number) or [number] for number in count()), 0)
    next(batches)
    assert taken == list(range(7))  # the batch itself and two rollouts of three
    assert RowsAhead(0, 3).over(batches, 0) is batches


def test_a_run_that_resumes_within_a_rollout_counts_on():
    batches = rollouts(4, 3)[1:]  # micro-step 1 of the first rollout is next
    found = followers(RowsAhead(1, 3), batches, 1, 1, 3)
    assert [(batch, following) for batch, following in found] == [([1], [[2]]), ([2], [[3]]), ([3], [])]


def test_an_epoch_begins_with_rows_of_its_own():
    ahead = RowsAhead(1, 1)
    assert followers(ahead, [["a"], ["b"]], 0, 1, 1) == [(["a"], [["b"]]), (["b"], [])]
    assert followers(ahead, [["b"], ["c"]], 2, 1, 1) == [(["b"], [["c"]]), (["c"], [])]
    assert ahead.after(["c"]) is None  # equal rows that another part of the run draws
    stopped = ahead.over(iter([["d"], ["e"]]), 4)
    next(stopped)
    assert followers(ahead, [["f"], ["g"]], 5, 1, 1)[0] == (["f"], [["g"]])


def test_rows_that_cannot_be_loaded_fail_at_their_turn():
    def loader():
        yield from rollouts(2, 2)
        raise KeyError("row 7")

    batches = RowsAhead(2, 2).over(loader(), 0)
    assert [next(batches) for _ in range(4)] == [[0], [0], [1], [1]]
    with pytest.raises(KeyError, match="row 7"):
        next(batches)


@pytest.fixture
def beside(monkeypatch):
    """Puts threads in the place of the processes."""
    monkeypatch.setattr(loader_module, "ReaderProcesses", Beside)


def sizes(kind, medium):
    if kind == "image":
        raise ValueError("no images")
    return None


def test_only_what_is_asked_for_last_is_held(clips, beside):
    loader = MediaLoader(workers=1, cache_bytes=0)
    a, b, c = (video(clips[name]) for name in ("plain", "long", "webm"))
    loader.read_ahead([a, b, a], sizes)
    assert len(loader._ahead) == 2
    loader.read_ahead([b, c], sizes)
    assert loader._ahead.keys() == {b.key, c.key}
    first, _, again = loader.load([c, b, c])
    assert again is first
    assert loader._ahead == {}
    assert loader.stats == {"decoded": 2, "cache_hits": 0, "failed": 0}
    loader.read_ahead([a], sizes)
    loader.close()
    assert loader._ahead == {}
    assert torch.equal(loader.load([a])[0].frames, a.read().frames)  # decoded at its turn


def test_what_is_in_memory_is_not_read_ahead(clips, beside):
    loader = MediaLoader(workers=1)
    kept = loader.load([video(clips["plain"])])[0]
    loader.read_ahead([video(clips["plain"])], sizes)
    assert loader._ahead == {}
    assert loader.load([video(clips["plain"])])[0] is kept
    loader.close()


def test_a_file_that_changes_after_it_was_read_ahead_is_read_again(clips, beside, tmp_path, numbers_of):
    loader, path = MediaLoader(workers=1), tmp_path / "a.mp4"
    path.write_bytes(b"not a video")
    loader.read_ahead([video(path)], sizes)
    path.write_bytes(clips["long"].read_bytes())
    assert numbers_of(loader.load([video(path)])[0].frames) == [0, 239]
    loader.close()


def test_what_the_processor_refuses_is_left_to_the_caller(beside):
    request = MediaRequest("image", Image.new("RGB", (28, 28), (1, 2, 3)))
    loader = MediaLoader(workers=1)
    loader.read_ahead([request], sizes)
    (reading,) = loader.readings([request])
    assert (reading.processed, reading.medium.getpixel((0, 0))) == (None, (1, 2, 3))
    loader.close()


def test_a_bug_of_the_processor_comes_at_its_turn(clips, beside):
    def broken(kind, medium):
        raise KeyError("bug")

    loader = MediaLoader(workers=1)
    loader.read_ahead([video(clips["plain"])], broken)
    with pytest.raises(KeyError, match="bug"):
        loader.load([video(clips["plain"])])
    loader.close()


def alive():
    return [child for child in multiprocessing.active_children() if child.name.startswith("Spawn")]


def test_processes_read_what_is_read_at_its_turn(clips, tmp_path):
    processor = AutoProcessor.from_pretrained(model_path("tiny"))
    process = partial(family_of_processor(processor).process, processor)
    image = Image.effect_noise((84, 56), 50).convert("RGB")
    requests = [
        video(clips["long"], VideoSettings(nframes=8)),
        MediaRequest("image", image),
        video(clips["cut_mp4"]),
    ]
    cache = MediaCache(tmp_path, 1 << 30)
    loader = MediaLoader(workers=1, cache_bytes=0, read=cache.read)
    loader.read_ahead(requests, process)
    clip, picture, cut = loader.readings(requests)
    for reading, request in ((clip, requests[0]), (picture, requests[1])):
        wanted = process(request.kind, request.read())
        assert reading.processed.texts == wanted.texts
        assert reading.processed.fields.keys() == wanted.fields.keys()
        for name, value in wanted.fields.items():
            assert torch.equal(torch.as_tensor(reading.processed.fields[name]), torch.as_tensor(value))
            assert not getattr(reading.processed.fields[name], "is_shared", bool)()
    wanted = requests[0].read()
    assert torch.equal(clip.medium.frames, wanted.frames)
    assert torch.equal(clip.medium.times, wanted.times)
    assert clip.medium.metadata == wanted.metadata
    assert not clip.medium.frames.is_shared()
    assert picture.medium.tobytes() == image.tobytes()
    with pytest.raises(MediaError) as error:
        requests[2].read()
    assert str(cut.medium) == str(error.value)
    assert isinstance(cut.medium, MediaError)
    assert loader.stats == {"decoded": 2, "cache_hits": 0, "failed": 1}
    loader.read_ahead(requests[:1], process)
    assert loader.load(requests[:1])[0].indices == wanted.indices
    assert loader.stats["disk_hits"] == 1
    (worker,) = alive()
    os.kill(worker.pid, signal.SIGKILL)
    loader.read_ahead(requests[1:2], process)
    with pytest.raises(
        RuntimeError, match=r"^A process that reads media ahead died; .*lower media_workers or media_prefetch"
    ):
        loader.load(requests[1:2])
    loader.close()
    assert alive() == []


@pytest.mark.slow
def test_close_ends_what_is_running():
    processes = loader_module.ReaderProcesses(2, 1, time.sleep, lambda result: result)
    processes.submit(0).result()
    waiting = [processes.submit(600) for _ in range(5)]
    time.sleep(0.5)
    begun = time.monotonic()
    processes.close()
    assert time.monotonic() - begun < 30
    assert alive() == []
    assert all(future.done() for future in waiting)


RUN = """
import time
from trl_perception.media.prefetch import ReaderProcesses

if __name__ == "__main__":
    processes = ReaderProcesses(1, 1, time.sleep, lambda result: result)
    processes.submit(0).result()
    print(next(iter(processes._processes._processes)), flush=True)
    processes.submit(600).result()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_processes_end_with_a_run_that_is_killed(tmp_path, how):
    (tmp_path / "run.py").write_text(RUN)
    run = subprocess.Popen([sys.executable, str(tmp_path / "run.py")], stdout=subprocess.PIPE, text=True)
    worker = int(run.stdout.readline())
    run.send_signal(how)
    run.wait(60)
    for _ in range(300):
        try:
            os.kill(worker, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    os.kill(worker, signal.SIGKILL)
    pytest.fail("the worker outlives the run")


@pytest.mark.slow
def test_memory_and_files_stay_bounded_over_many_readings(clips):
    loader = MediaLoader(workers=2, cache_bytes=0)
    held = []
    for turn in range(40):
        requests = [video(clips["long"], VideoSettings(nframes=2 + 2 * (turn % 8 + place))) for place in range(4)]
        loader.read_ahead(requests, sizes)
        assert len(loader._ahead) <= 4
        assert all(isinstance(reading, Reading) for reading in loader.readings(requests))
        held.append(len(os.listdir("/proc/self/fd")))
    assert max(held[20:]) <= max(held[5:20])
    loader.close()
    assert alive() == []
