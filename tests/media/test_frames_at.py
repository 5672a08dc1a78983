"""Frames by time, for display."""

import pytest
import torch

from tests.conftest import write_clip
from trl_perception.media import MediaError, VideoSettings, frames_at, read_video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Four seconds of single-coloured frames, 4 a second, 56x56."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seed=0)


def test_they_are_the_frames_that_training_saw(clip):
    trained = read_video(clip, VideoSettings(fps=2.0))
    shown = frames_at(clip, trained.times.tolist(), longest_side=28)
    assert len(shown) == len(trained.frames)
    for small, seen in zip(shown, trained.frames, strict=True):
        assert small.shape == (3, 28, 28)
        # single-coloured frames: the middle pixel identifies the frame
        assert (small[:, 14, 14].int() - seen[:, seen.shape[1] // 2, seen.shape[2] // 2].int()).abs().max() <= 2


def test_times_come_in_any_order_and_are_never_made_larger(clip):
    late, early, again = frames_at(clip, [3.0, 0.0, 3.1], longest_side=500)
    assert late.shape == (3, 56, 56)
    assert torch.equal(late, again)  # 4 frames a second: 3.1 is nearest to the frame at 3.0
    assert not torch.equal(late, early)
    assert frames_at(clip, [], longest_side=28) == []


def test_what_cannot_be_read_is_a_media_error(tmp_path):
    with pytest.raises(MediaError, match="cannot be opened"):
        frames_at(str(tmp_path / "gone.mp4"), [0.0], longest_side=28)
