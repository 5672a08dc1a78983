"""Rows to prompts: tokens, times, sizes, and what is left out."""

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_vl_utils.vision_process import fetch_image
from transformers import AutoProcessor

from tests.conftest import write_clip
from tests.helpers import message
from trl_perception.assets import model_path
from trl_perception.families import family_of_processor
from trl_perception.media import PromptPreparer, VideoSettings
from trl_perception.media.prompts import UnusableSampleError


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(model_path("tiny"))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Four seconds at 4 frames a second, 56x56."""
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", seed=0)


def row(video, **block):
    content = [{"type": "video", "video": video, **block}, {"type": "text", "text": "Which colour?"}]
    return {"prompt": [{"role": "user", "content": content}], "id": "r1"}


@pytest.mark.parametrize(
    ("block", "cells", "seconds"),
    [
        ({}, 4, 1.0),  # 4 s at 2 fps: 8 frames, 4 cells; two frames of half a second
        ({"fps": 4.0}, 8, 0.5),
        ({"max_frames": 4}, 2, 2.0),  # 4 frames over 4 s: one a second
        ({"nframes": 2}, 1, 4.0),
        # frames 4 to 12 of 16 are 9 frames, 2.25 s; 4 of them: 9/4/4 s apart, times two
        ({"video_start": 1.0, "video_end": 3.0}, 2, 1.125),
    ],
)
def test_seconds_of_a_cell_follow_the_sampling(processor, clip, block, cells, seconds):
    (prompt,) = PromptPreparer(processor)([row(clip, **block)])
    assert prompt.visual.video_grid_thw.tolist() == [[cells, 4, 4]]
    assert prompt.visual.second_per_grid_ts.tolist() == pytest.approx([seconds])
    assert prompt.visual.visual_tokens == cells * 4 == prompt.input_ids.count(processor.video_token_id)
    if "video_start" in block:
        assert min(prompt.frame_times[0]) >= 1.0
        assert max(prompt.frame_times[0]) <= 3.0


def test_sizes_follow_row_settings_and_processor_in_this_order(processor, tmp_path):
    clip = write_clip(tmp_path / "big.mp4", seed=0, size=168)
    at_most = {"processor": {}, "setting": {"max_pixels": 84 * 84}, "row": {"max_pixels": 56 * 56}}
    grids = {}
    for name, limit in at_most.items():
        settings = VideoSettings(max_pixels=84 * 84) if name != "processor" else None
        (prompt,) = PromptPreparer(processor, video_settings=settings)([row(clip, **(limit if name == "row" else {}))])
        grids[name] = prompt.visual.video_grid_thw[0, 1:].tolist()
    # patches of 14 pixels: 168 / 14, 84 / 14, 56 / 14
    assert grids == {"processor": [12, 12], "setting": [6, 6], "row": [4, 4]}


def test_images_are_resized_only_within_given_limits(processor, pictures):
    rows = [{"prompt": message("?", "image"), "images": [pictures[0]]}]  # 56x84
    (as_it_is,) = PromptPreparer(processor)(rows)
    (smaller,) = PromptPreparer(processor, image_max_pixels=28 * 56)(rows)
    assert as_it_is.visual.image_grid_thw.tolist() == [[1, 4, 6]]
    assert smaller.visual.image_grid_thw.prod().item() * 14 * 14 <= 28 * 56
    assert smaller.visual.pixel_values.shape[0] == smaller.visual.image_grid_thw.prod().item()


def test_each_image_has_its_own_limits_and_the_others_those_of_the_run(processor, tmp_path):
    Image.fromarray(np.zeros((280, 280, 3), np.uint8)).save(tmp_path / "a.png")

    def grids(own, **settings):
        blocks = [{"type": "image", "image": str(tmp_path / "a.png"), **limits} for limits in ({}, own, {})]
        (prompt,) = PromptPreparer(processor, **settings)(
            [{"prompt": [{"role": "user", "content": [*blocks, {"type": "text", "text": "?"}]}]}]
        )
        assert prompt.visual.visual_tokens == prompt.input_ids.count(processor.image_token_id)
        return prompt.visual.image_grid_thw[:, 1:].tolist()

    # The processor allows 50176 pixels: 224 = 16 patches of 14 a side. 56 * 56 pixels are 4 patches, 112 * 112 are 8.
    assert grids({"max_pixels": 56 * 56}) == [[16, 16], [4, 4], [16, 16]]
    assert grids({"max_pixels": 56 * 56}, image_max_pixels=112 * 112) == [[8, 8], [4, 4], [8, 8]]
    assert grids({"max_pixels": 112 * 112}, image_max_pixels=56 * 56) == [[4, 4], [8, 8], [4, 4]]
    assert grids({"resized_height": 60, "resized_width": 100}) == [[16, 16], [4, 8], [16, 16]]
    # a minimum above the processor's maximum: 280 pixels are 20 patches a side
    assert grids({"min_pixels": 280 * 280}) == [[16, 16], [20, 20], [16, 16]]
    # a maximum below the run's minimum
    assert grids({"max_pixels": 56 * 56}, image_min_pixels=112 * 112) == [[16, 16], [4, 4], [16, 16]]


def test_an_image_is_resized_as_qwen_vl_utils_does(processor, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8))
    (prompt,) = PromptPreparer(processor)([{"prompt": message("?", "image"), "images": [picture]}])
    expected = fetch_image({"image": picture, "min_pixels": 784, "max_pixels": 50176})
    assert np.array_equal(np.asarray(prompt.images[0]), np.asarray(expected))


@pytest.mark.parametrize("text", ["What is <|video_pad|>?", "And <|image_pad|>?", "<|image_pad|><|image_pad|>"])
def test_a_placeholder_written_into_the_text_is_bad_media(processor, clip, text):
    bad = row(clip)
    bad["prompt"][0]["content"][1]["text"] = text
    with pytest.raises(UnusableSampleError, match=r"sample r1: the prompt has .* take it out of the text"):
        PromptPreparer(processor)([bad])
    good, left = PromptPreparer(processor)([row(clip), bad], on_unusable="skip")
    assert (good.left_out, "take it out" in left.left_out) == ("", True)


def test_what_the_template_or_the_processor_refuses_is_bad_media(processor, clip, monkeypatch):
    image = {"prompt": message("?", "image"), "images": [Image.new("RGB", (2, 402))], "id": "thin"}
    with pytest.raises(UnusableSampleError, match=r"sample thin: .*aspect ratio"):
        PromptPreparer(processor)([image])
    assert PromptPreparer(processor)([image], on_unusable="skip")[0].left_out
    refusing = "{{ raise_exception('no system here') }}"
    with pytest.raises(UnusableSampleError, match="sample r1: no system here"):
        PromptPreparer(processor, chat_template_kwargs={"chat_template": refusing})([row(clip)])


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ({"max_frame": 4}, "did you mean 'max_frames'"),
        ({"max_pixels": "784"}, "max_pixels is '784', of type str; a whole number is wanted"),
        ({"sample_fps": "2"}, "sample_fps of a block"),
    ],
)
def test_a_block_that_is_wrong_names_its_sample(processor, clip, block, words):
    with pytest.raises(ValueError, match=f"sample r1: .*{words}"):
        PromptPreparer(processor)([row(clip, **block)])


def test_left_out_samples_keep_their_place_and_say_why(processor, clip, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"not a video")
    rows = [row(clip), {**row(str(tmp_path / "broken.mp4")), "id": "r2"}, {"prompt": message("Say red.")}]
    with pytest.raises(UnusableSampleError, match=r"sample r2: .*broken\.mp4"):
        PromptPreparer(processor)(rows)
    good, bad, text = PromptPreparer(processor, max_prompt_length=60)(rows, on_unusable="skip")
    assert (good.left_out, text.left_out) == ("", "")
    assert "broken.mp4" in bad.left_out
    assert len(bad.input_ids) == 2
    assert bad.visual.visual_tokens == 0
    (long,) = PromptPreparer(processor, max_prompt_length=10)(rows[:1], on_unusable="skip")
    assert "16 of them visual; the limit is max_prompt_length=10" in long.left_out


def test_the_same_clip_is_decoded_once(processor, clip):
    preparer = PromptPreparer(processor)
    first, second = preparer([row(clip), row(clip)])
    preparer([row(clip)])
    assert preparer.loader.stats["decoded"] == 1
    assert torch.equal(first.visual.pixel_values_videos, second.visual.pixel_values_videos)


def test_only_processors_of_a_family_are_prepared_for(processor):
    assert family_of_processor(processor).model_types == ("qwen2_vl", "qwen2_5_vl")
    assert family_of_processor(processor.tokenizer) is None
    assert family_of_processor(None) is None
