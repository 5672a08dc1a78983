"""Times that prompts state, and sizes of frames, against the processors' own rules; token counts before reading."""

import re

import pytest
import torch

from tests.families.parts import clip
from tests.families.rows import KINDS, media_of, preparer, row
from tests.families.test_forwards import OURS
from tests.families.tiny import tiny
from tests.media.drawn import encode
from trl_perception.media import PromptPreparer, VideoSettings
from trl_perception.media.probe import MediaFacts, expected_tokens, read_tokens
from trl_perception.media.sampling import ClipLimits, frame_size

# Frames 0..9 each 100 ms, then one each second.
VARIABLE = [*range(0, 1000, 100), *range(1000, 11000, 1000)]


def text_of(family, path, **settings):
    prompts = PromptPreparer(family.processor, video_settings=VideoSettings(**settings))
    message = [{"role": "user", "content": [{"type": "video", "video": str(path)}, {"type": "text", "text": "?"}]}]
    (prompt,) = prompts([{"prompt": message}])
    return family.processor.tokenizer.decode(prompt.input_ids)


def test_qwen3_vl_states_the_middle_of_each_pair_of_frames(tmp_path):
    family = tiny("qwen3_vl")
    even = encode(tmp_path / "even.mp4", range(40))  # 10 a second
    # 4 s at 2 a second: 8 frames, linspace(0, 39, 8) = 0 5.57 11.1 16.7 22.3 27.9 33.4 39 -> 0 6 11 17 22 28 33 39;
    # pairs (0 6) (11 17) (22 28) (33 39) at 10 a second: 0.3, 1.4, 2.5 and 3.6 s
    times = re.findall(r"<([\d.]+) seconds>", text_of(family, even, fps=2.0))
    assert times == ["0.3", "1.4", "2.5", "3.6"]
    # From 1 s to 3 s: frames 10..30, 4 of them: 10 16.7 23.3 30 -> 10 17 23 30; pairs 1.35 and 2.65 s of the whole file
    cut = text_of(family, even, fps=2.0, video_start=1.0, video_end=3.0)
    assert [float(t) for t in re.findall(r"<([\d.]+) seconds>", cut)] == pytest.approx([1.35, 2.65], abs=0.051)


def test_times_at_a_variable_rate_are_those_of_the_screen(tmp_path):
    path = encode(tmp_path / "variable.mp4", range(20), milliseconds=VARIABLE)
    # Frames are sampled at 0, 3.03, 6.565 and 9.595 s (tests/media/test_video.py); by number they would be 0.6 and 4 s.
    found = re.findall(r"<([\d.]+) seconds>", text_of(tiny("qwen3_vl"), path, nframes=4))
    assert [float(time) for time in found] == pytest.approx([(0 + 3.03) / 2, (6.565 + 9.595) / 2], abs=0.051)
    frames = re.findall(r"Frame from (\d\d):(\d\d):", text_of(tiny("smolvlm"), path, nframes=4))
    assert [int(minutes) * 60 + int(seconds) for minutes, seconds in frames] == [0, 3, 6, 9]


@pytest.mark.parametrize("name", ["qwen3_vl", "qwen3_5", "glm4v", "glm46v"])
def test_a_clips_pixels_are_shared_by_its_frames_as_the_processor_shares_them(name):
    processor = tiny(name).processor
    part = processor.video_processor
    factor = part.patch_size * part.merge_size
    limits = ClipLimits(part.size["shortest_edge"], part.size["longest_edge"])
    reduced = set()
    for frames in (2, 4, 8, 16, 32):
        for height, width in ((factor * 2, factor * 3), (240, 320), (480, 360)):
            given = torch.zeros(frames, 3, height, width, dtype=torch.uint8)
            grid = part(videos=[given], do_sample_frames=False, return_tensors="pt")["video_grid_thw"][0].tolist()
            size = frame_size(height, width, frames, VideoSettings(), factor=factor, size_limits=limits)
            assert [side // part.patch_size for side in size] == grid[1:]
            reduced.add(size[0] < height)
    assert reduced == {True, False}


@pytest.mark.parametrize("name", OURS)
def test_tokens_are_known_before_and_after_reading(name):
    family = tiny(name)
    prepares = preparer(family)
    for kind in KINDS:
        (prompt,) = prepares([row(kind)])
        blocks = [block for block in row(kind)["prompt"][0]["content"] if block["type"] != "text"]
        requests = [prepares.media_settings.request(block) for block in blocks]
        sizes = {
            "image": lambda medium: (1, medium.height, medium.width),
            "video": lambda medium: (8, *medium.shape[-2:]),
        }
        facts = [
            MediaFacts(medium, height, width, frames, 2.0 if medium == "video" else 1.0)
            for medium, value in media_of(kind)
            for frames, height, width in [sizes[medium](value)]
        ]
        before = sum(expected_tokens(fact, request) for fact, request in zip(facts, requests, strict=True))
        after = sum(read_tokens(request.read(), request) for request in requests)
        assert before == after == prompt.visual.visual_tokens


def test_clips_of_unequal_length_fit_into_one_prompt():
    for name in OURS:
        family = tiny(name)
        blocks = [{"type": "video", "video": clip(frames, 56, 84, frames), "sample_fps": 2.0} for frames in (8, 4)]
        (prompt,) = preparer(family)(
            [{"prompt": [{"role": "user", "content": [*blocks, {"type": "text", "text": "?"}]}]}]
        )
        cells = prompt.visual.video_grid_thw[:, 0].tolist()
        assert cells[0] == 2 * cells[1]
        assert prompt.visual.features("video") == int((prompt.visual.token_types == 2).sum())
