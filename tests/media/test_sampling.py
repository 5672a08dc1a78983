import numpy as np
import pytest
import torch
from qwen_vl_utils import vision_process

from trl_perception.media.errors import MediaError
from trl_perception.media.sampling import (
    VideoSettings,
    average_fps,
    frame_range,
    frame_size,
    sample_indices,
    thin_indices,
)

CELL = 28 * 28


def test_sampling_by_fps_matches_hand_count():
    # 40 frames at 10 per second last 4 s; 4 s * 1.5 = 6 frames, 39 / 5 = 7.8 apart: 0, 7.8, 15.6, 23.4, 31.2, 39
    assert sample_indices(VideoSettings(fps=1.5), 40, 10.0) == ([0, 8, 16, 23, 31, 39], 40)


def test_sampling_keeps_its_bounds():
    # 4 s * 2 = 8 frames, at most 4: 0, 13, 26, 39
    assert sample_indices(VideoSettings(max_frames=4), 40, 10.0)[0] == [0, 13, 26, 39]
    # 4 s * 0.25 = 1 frame, at least 4
    assert sample_indices(VideoSettings(fps=0.25), 40, 10.0)[0] == [0, 13, 26, 39]
    # 3 frames are all there is; the even number below is 2
    assert sample_indices(VideoSettings(), 3, 10.0) == ([0, 2], 3)


def test_nframes_replaces_fps():
    # 3 rounds to 4 (3 / 2 = 1.5 -> 2 pairs)
    assert sample_indices(VideoSettings(fps=9.0, nframes=3), 40, 10.0)[0] == [0, 13, 26, 39]


def test_a_range_is_sampled_in_absolute_indices():
    # ceil(1.05 * 10) = 11 to floor(2.0 * 10) = 20 are 10 frames, 1 s * 4 = 4 of them 3 apart
    settings = VideoSettings(fps=4.0, video_start=1.05, video_end=2.0)
    assert frame_range(settings, 40, 10.0, "clip") == (11, 20, 10)
    assert sample_indices(settings, 40, 10.0) == ([11, 14, 17, 20], 10)


def test_one_frame_is_kept():
    assert sample_indices(VideoSettings(nframes=8), 1, 10.0) == ([0], 1)
    assert thin_indices(VideoSettings(), 1, 2.0) == ([0], 1)


@pytest.mark.parametrize("total", [2, 7, 100, 2501])
@pytest.mark.parametrize("rate", [2.0, 24000 / 1001, 60.0])
@pytest.mark.parametrize("span", [(None, None), (0.1, None), (0.2, 7.3)])
@pytest.mark.parametrize("block", [{}, {"fps": 3.7}, {"nframes": 2}, {"max_frames": 9, "min_frames": 5}])
def test_indices_are_those_of_qwen_vl_utils(total, rate, span, block):
    ele = {**block, **{key: value for key, value in zip(("video_start", "video_end"), span, strict=True) if value}}
    try:
        first, last, count = vision_process.calculate_video_frame_range(ele, total, rate)
    except ValueError:
        with pytest.raises(MediaError):
            sample_indices(VideoSettings().override(ele), total, rate)
        return
    kept = vision_process.smart_nframes(ele, count, rate)
    expected = torch.linspace(first, last, kept).round().long().tolist()
    assert sample_indices(VideoSettings().override(ele), total, rate) == (expected, count)


@pytest.mark.parametrize(
    ("settings", "total", "reason"),
    [
        (VideoSettings(), 0, "no video frame"),
        (VideoSettings(video_start=4.0), 40, "past the end, the clip lasts 4.000 s"),
        (VideoSettings(video_start=1.0, video_end=1.05), 40, "fewer than two of the 40 frames"),
        (VideoSettings(nframes=12), 10, "12 frames are wanted and the range has 10"),
    ],
)
def test_impossible_sampling_is_refused(settings, total, reason):
    with pytest.raises(MediaError, match=reason) as caught:
        sample_indices(settings, total, 10.0, "film.mp4")
    assert caught.value.source == "film.mp4"


def test_lists_are_thinned_only_above_the_bound():
    assert thin_indices(VideoSettings(fps=0.1, max_frames=5), 5, 2.0) == ([0, 1, 2, 3, 4], 5)
    # 10 frames, at most 4: 0, 3, 6, 9
    assert thin_indices(VideoSettings(max_frames=4), 10, 2.0) == ([0, 3, 6, 9], 10)
    assert thin_indices(VideoSettings(nframes=4), 10, 2.0) == ([0, 3, 6, 9], 10)
    # 1 s to 3 s at 2 frames per second are frames 2 to 6
    assert thin_indices(VideoSettings(video_start=1.0, video_end=3.0), 10, 2.0) == ([2, 3, 4, 5, 6], 5)


def test_block_overrides_settings_key_by_key():
    base = VideoSettings(nframes=8, max_pixels=50 * CELL)
    block = {"type": "video", "video": "a.mp4", "fps": 1.0, "max_pixels": None, "video_end": 3.0, "sample_fps": 4.0}
    assert base.override(block) == VideoSettings(fps=1.0, nframes=None, max_pixels=50 * CELL, video_end=3.0)
    assert VideoSettings(fps=3.0).override({"nframes": 6}).nframes == 6


def test_one_bound_of_a_block_moves_the_other_of_the_settings():
    base = VideoSettings(min_pixels=20 * CELL, max_pixels=50 * CELL)
    assert base.override({"max_pixels": 10 * CELL}) == VideoSettings(min_pixels=10 * CELL, max_pixels=10 * CELL)
    assert base.override({"min_pixels": 60 * CELL}) == VideoSettings(min_pixels=60 * CELL, max_pixels=60 * CELL)
    assert base.override({"max_pixels": 30 * CELL}) == VideoSettings(min_pixels=20 * CELL, max_pixels=30 * CELL)
    with pytest.raises(ValueError, match="above max_pixels"):
        base.override({"min_pixels": 2 * CELL, "max_pixels": CELL})


def test_block_mistakes_are_named():
    with pytest.raises(ValueError, match=r"'max_frame'.*did you mean 'max_frames'"):
        VideoSettings().override({"max_frame": 8})
    with pytest.raises(ValueError, match=r"an image block has the key 'max_pixel'.*did you mean 'max_pixels'"):
        VideoSettings().override({"type": "image", "max_pixel": 8})
    with pytest.raises(ValueError, match=r"an image block has the key 'fps'"):
        VideoSettings().override({"type": "image", "fps": 1.0})
    with pytest.raises(ValueError, match=r"both fps \(2\) and nframes \(8\)"):
        VideoSettings().override({"fps": 2, "nframes": 8})


@pytest.mark.parametrize(
    "wrong",
    [
        {"fps": 0.0},
        {"nframes": 1},
        {"max_frames": 1},
        {"min_frames": 0},
        {"max_pixels": 0},
        {"min_pixels": 20, "max_pixels": 10},
        {"resized_height": 56},
        {"max_pixels": "50176"},
        {"max_pixels": True},
        {"max_frames": 2.5},
        {"fps": None},
        {"video_end": float("nan")},
    ],
)
def test_settings_out_of_bounds_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        VideoSettings(**wrong)


def test_whole_numbers_that_arrow_made_floats_are_whole():
    assert VideoSettings(max_pixels=784.0) == VideoSettings(max_pixels=784)
    assert isinstance(VideoSettings(max_pixels=np.float64(784)).max_pixels, int)


def test_frame_size_matches_hand_count():
    # 1080x1920 is above 100 cells: sqrt(2073600 / 78400) = 5.143, 1080 / 5.143 = 210 -> 7 * 28 = 196,
    # 1920 / 5.143 = 373 -> 13 * 28 = 364
    assert frame_size(1080, 1920, 8, VideoSettings(max_pixels=100 * CELL)) == (196, 364)
    # 60x60 is below 16 cells: sqrt(12544 / 3600) = 1.867, 60 * 1.867 = 112 = 4 * 28
    assert frame_size(60, 60, 8, VideoSettings(min_pixels=16 * CELL)) == (112, 112)
    # with factor 32 both sides are rounded to multiples of 32, 16 * 32**2 pixels being 128 a side
    assert frame_size(130, 130, 8, VideoSettings(max_pixels=16 * 1024), factor=32, size_limits=(1024, None)) == (
        128,
        128,
    )
    assert frame_size(500, 500, 8, VideoSettings(resized_height=60, resized_width=100)) == (56, 112)


def test_pixels_of_the_clip_are_shared_by_its_frames():
    # 320 cells for 8 frames, two frames counting as one: 320 / 8 * 2 = 80 cells; 8.9 * 28 squared is 80 cells: 8 * 28
    settings = VideoSettings(total_pixels=320 * CELL, min_pixels=CELL)
    assert frame_size(1000, 1000, 8, settings) == (224, 224)
    # a share below the minimum gives way to 1.05 * 116 = 121.8 cells: 11 * 28
    assert frame_size(1000, 1000, 8, VideoSettings(total_pixels=CELL, min_pixels=116 * CELL)) == (308, 308)


def test_size_limits_give_way_to_settings():
    limits = (128 * CELL, 400 * CELL)
    assert frame_size(1000, 1000, 8, VideoSettings(), size_limits=limits) == (560, 560)  # 20 * 20 = 400 cells
    assert frame_size(60, 60, 8, VideoSettings(), size_limits=limits) == (336, 336)  # 12 * 12 is the square above 128
    # a maximum of 25 cells lowers the minimum of 128 with it
    assert frame_size(1000, 1000, 8, VideoSettings(max_pixels=25 * CELL), size_limits=limits) == (140, 140)
    # a minimum of 900 cells is above the limit of 400 and wins, up to the cap of 768 * 28**2 that 1.05 * 900 lifts
    assert frame_size(60, 60, 8, VideoSettings(min_pixels=900 * CELL), size_limits=limits) == (840, 840)


def test_frames_that_cannot_be_sized_are_refused():
    with pytest.raises(MediaError, match="aspect ratio of 200"):
        frame_size(10, 2010, 8, VideoSettings())
    with pytest.raises(MediaError, match="would become 0x"):
        frame_size(28, 2800, 8, VideoSettings(max_pixels=9 * CELL))


def test_average_fps_prefers_an_exact_declaration_that_agrees():
    rounded = np.array([0.0, 0.033, 0.067, 0.1])
    # gaps of 33, 34 and 33 ms are even within 2 ms; 3 of them at 30000 / 1001 take 0.1001 s, and 0.1 were found
    assert average_fps(rounded, 0.033, 30000 / 1001, 0.002) == 30000 / 1001
    # 1000 a second would take 0.003 s: 3 / 0.1 = 30, for any duration of the last frame
    assert average_fps(rounded, 5.0, 1000.0, 0.002) == pytest.approx(30.0)
    # 3 frames in 4 + 1 s are 0.6 per second, for any declared rate
    assert average_fps(np.array([0.0, 1.0, 4.0]), 1.0, 25.0, 0.002) == pytest.approx(0.6)
    # unknown last duration: the average gap, (4 - 0) / 2 = 2 s; 3 / 6 = 0.5
    assert average_fps(np.array([0.0, 1.0, 4.0]), 0.0, 25.0, 0.002) == pytest.approx(0.5)
    assert average_fps(np.array([0.0]), 0.04, 25.0, 0.0) == 25.0
