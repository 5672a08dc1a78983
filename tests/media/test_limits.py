import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers import AutoProcessor

from trl_perception import GRPOVideoConfig
from trl_perception.assets import model_path
from trl_perception.cli.prepare import build_parser, read_options
from trl_perception.evaluation.settings import EvaluationSettings
from trl_perception.media import MediaError, MediaLimits, MediaLoader, MediaRequest, PromptPreparer, read_video
from trl_perception.media import download as download_module
from trl_perception.media.container import BudgetedContainer
from trl_perception.media.download import download
from trl_perception.media.images import read_image
from trl_perception.media.limits import Budget
from trl_perception.media.probe import probe
from trl_perception.media.prompts import UnusableSampleError

GIVEN = MediaLimits(max_pixels=5000, max_frames=7, timeout=3.5)


def test_a_limit_is_the_last_value_allowed():
    budget = Budget("a.mp4", MediaLimits(max_pixels=6, max_frames=3))
    budget.check_pixels(2, 3)
    budget.check_frames(3)
    with pytest.raises(MediaError, match=r"a.mp4: 1x7 pixels are more than media_max_pixels 6. Raise media_max_pixels"):
        budget.check_pixels(1, 7)
    with pytest.raises(MediaError, match=r"4 frames \(found so far\) are more than media_max_frames 3. Raise"):
        budget.check_frames(4)


def test_the_clock_runs_from_the_start(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("trl_perception.media.limits.time.monotonic", lambda: now[0])
    budget = Budget("a.mp4", MediaLimits(timeout=0.02))
    budget.check_time()
    now[0] += 0.03
    with pytest.raises(MediaError, match=r"longer than media_timeout 0.02 s. Raise media_timeout"):
        budget.check_time()


@pytest.mark.parametrize("name", ["max_pixels", "max_frames", "timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_above_zero(name, value):
    with pytest.raises(ValueError, match=f"media_{name} is {value}; set media_{name} above 0"):
        MediaLimits(**{name: value})


def test_limits_exactly_met_are_no_obstacle(clips):
    limits = MediaLimits(max_pixels=56 * 112, max_frames=30)
    assert read_video(clips["plain"], limits=limits).total_frames == 30
    assert probe("video", clips["plain"], limits).frames == 30
    assert read_image(np.zeros((56, 112, 3), np.uint8), limits=limits).size == (112, 56)


def test_headers_are_checked_against_the_limits(clips):
    with pytest.raises(MediaError, match="media_max_frames 29"):
        probe("video", clips["plain"], MediaLimits(max_frames=29))
    with pytest.raises(MediaError, match="media_max_pixels 6271"):
        probe("video", clips["plain"], MediaLimits(max_pixels=56 * 112 - 1))


def test_the_loader_keeps_results_of_other_limits_apart(clips):
    loader = MediaLoader()
    tight = MediaRequest("video", clips["plain"], limits=MediaLimits(max_frames=29))
    clip, refused = (loader.load([request])[0] for request in (MediaRequest("video", clips["plain"]), tight))
    assert clip.total_frames == 30
    assert "media_max_frames 29" in refused.reason


@pytest.mark.parametrize("kind", ["image", "video"])
def test_prompts_check_their_media_against_the_limits(clips, kind):
    medium = clips["plain"] if kind == "video" else Image.new("RGB", (112, 56))
    row = {"prompt": [{"role": "user", "content": f"<{kind}> What?"}], f"{kind}s": [medium], "id": 3}
    preparer = PromptPreparer(AutoProcessor.from_pretrained(model_path("tiny")), media_limits=GIVEN)
    with pytest.raises(UnusableSampleError, match=r"sample 3: .*56x112 pixels are more than media_max_pixels 5000"):
        preparer([row])


def test_configs_carry_the_limits(tmp_path):
    given = {"media_max_pixels": 5000, "media_max_frames": 7, "media_timeout": 3.5}
    training = {"output_dir": str(tmp_path), "bf16": False, "use_cpu": True}
    assert GRPOVideoConfig(**training, **given).media_limits == GIVEN
    assert GRPOVideoConfig(**training).media_limits == MediaLimits()
    with pytest.raises(ValueError, match="media_timeout is 0; set media_timeout above 0"):
        GRPOVideoConfig(**training, media_timeout=0)
    evaluation = {"model": "tiny", "data": "synthetic", "output": "out"}
    assert EvaluationSettings(**evaluation, **given).media_limits == GIVEN
    words = [f"--{key.replace('_', '-')}={value}" for key, value in given.items()]
    options = read_options(build_parser().parse_args(["jsonl", "--source", "a", "--output", "b", *words]))
    assert options.media_limits == GIVEN


def test_a_connection_that_opens_after_the_end_is_shut(monkeypatch):
    from tests.media.misbehaving_server import misbehaving

    class Late(download_module._Interruptible):
        def get_connection_with_tls_context(self, *args, **kwargs):
            self.shut()  # the time is over before there is a connection
            return super().get_connection_with_tls_context(*args, **kwargs)

    monkeypatch.setattr(download_module, "_Interruptible", Late)
    start = time.monotonic()
    with misbehaving(b"") as address, pytest.raises(MediaError, match="the download failed"):
        download(f"{address}/silent.mp4", Budget("a.mp4"), max_bytes=1000)
    assert time.monotonic() - start < 25  # the server holds a connection for 30


class Container:
    """The part of PyAV's container that the budget counts, given a list of frames per packet."""

    format = streams = duration = seek = None

    def __init__(self, packets, error=None):
        self.packets, self.error = packets, error

    def demux(self, *streams):
        yield from self.packets
        if self.error:
            raise self.error


def packet(*frames, size=1):
    stream = SimpleNamespace(type="video")
    return SimpleNamespace(size=size, stream=stream, is_keyframe=True, pts=None, decode=lambda: list(frames))


def frame(key=False, corrupt=False):
    return SimpleNamespace(height=2, width=2, key_frame=key, is_corrupt=corrupt)


def test_damage_lasts_until_the_next_whole_keyframe():
    frames = [frame(key=True), frame(), frame(corrupt=True), frame(), frame(key=True, corrupt=True), frame(key=True)]
    charged = BudgetedContainer(Container([packet(one) for one in frames]), Budget("a.mp4"))
    seen = [charged.damaged for _ in charged.decode(None, from_keyframe=True)]
    # the third is marked, the fourth predicted from it, the fifth a keyframe that is marked itself
    assert seen == [False, False, True, True, True, False]


def test_frames_count_where_one_packet_holds_many():
    charged = BudgetedContainer(Container([packet(*[frame()] * 5)]), Budget("a.mp4", MediaLimits(max_frames=4)))
    with pytest.raises(MediaError, match="5 frames"):
        list(charged.decode(None, from_keyframe=True))


def test_only_a_flushed_stream_may_end_with_an_index_error():
    flush, broken = packet(size=0), IndexError("list index out of range")
    assert len(list(BudgetedContainer(Container([packet(), flush], broken), Budget("a.ts")).demux())) == 2
    with pytest.raises(IndexError):
        list(BudgetedContainer(Container([packet()], broken), Budget("a.ts")).demux())
