"""Rewards that look at the media, by hand with a data set's columns and as the trainer calls them."""

import pytest
from datasets import Dataset
from PIL import Image

from tests.helpers import message
from trl_perception import GRPOVideoConfig, GRPOVideoTrainer
from trl_perception.media import MediaError, VideoClip, VideoSettings
from trl_perception.rewards.media import load_media, media_of

FEW = VideoSettings(nframes=2, max_pixels=56 * 56)


def test_media_come_from_the_columns_where_the_prompt_has_placeholders():
    prompts = [message("?", "video", "image"), message("?"), message("?", "image")]
    found = media_of(prompts, videos=[["a.mp4"], [], []], images=[["b.png"], None, ["c.png"]], solution=["B"] * 3)
    assert found == [
        [{"type": "video", "video": "a.mp4"}, {"type": "image", "image": "b.png"}],
        [],
        [{"type": "image", "image": "c.png"}],
    ]


def test_media_come_from_the_prompt_where_they_are_in_place():
    block = {"type": "video", "video": "a.mp4", "fps": 1.0, "image": None}  # Arrow adds the None
    prompts = [[{"role": "user", "content": [block, {"type": "text", "text": "?"}]}]]
    wanted = [[{"type": "video", "video": "a.mp4", "fps": 1.0}]]
    assert media_of(prompts) == wanted
    assert media_of(prompts, videos=[["a.mp4"]]) == wanted


def test_plain_prompts():
    tagged = [{"role": "user", "content": "before <image> and after"}]
    assert media_of([tagged], image=["a.png"]) == [[{"type": "image", "image": "a.png"}]]
    assert media_of([[{"role": "user", "content": "?"}]], images=[["a.png"]]) == [[{"type": "image", "image": "a.png"}]]
    assert media_of(["text", []], images=[[], None]) == [[], []]


def test_placeholders_and_media_have_to_agree():
    with pytest.raises(ValueError, match=r"1 video placeholder\(s\).*its column 'videos' holds 2"):
        media_of([message("?", "video")], videos=[["a.mp4", "b.mp4"]])


def test_media_are_decoded_as_the_reward_asks(clips, pictures):
    prompts = [message("?", "video", "image")] * 2 + [message("?")]
    columns = {"videos": [[clips[0]]] * 2 + [[]], "images": [[pictures[0]]] * 2 + [[]]}
    first, second, nothing = load_media(prompts, FEW, **columns)
    # two frames of 56x56, at the first and the last quarter of a second of 4; the picture as stored, 84x56
    assert first[0].frames.shape == (2, 3, 56, 56)
    assert first[0].times.tolist() == [0.0, 3.75]
    assert (first[1].size, first[1].tobytes()) == ((84, 56), Image.open(pictures[0]).tobytes())
    assert nothing == []
    assert all(a is b for a, b in zip(first, second, strict=True))  # decoded once
    assert load_media(prompts, FEW, **columns)[0][0] is first[0]
    prompts[0][0]["content"][0]["nframes"] = 4  # the row's own setting takes precedence
    assert len(load_media(prompts[:1], FEW, videos=[[clips[0]]], images=[[pictures[0]]])[0][0].frames) == 4


def test_a_medium_that_cannot_be_read_says_so(tmp_path):
    with pytest.raises(MediaError, match=r"nowhere\.mp4: the file cannot be opened"):
        load_media([message("?", "video")], videos=[[str(tmp_path / "nowhere.mp4")]])


def test_a_reward_sees_the_media_of_its_rows_in_training(clips, pictures, tmp_path):
    seen = []

    def brightness(prompts, completions, **columns):
        media = load_media(prompts, FEW, **columns)
        for blocks, loaded, name in zip(media_of(prompts, **columns), media, columns["name"], strict=True):
            seen.append((name, [block[block["type"]] for block in blocks], [type(medium) for medium in loaded]))
        clips_only = [[medium for medium in of_one if isinstance(medium, VideoClip)] for of_one in media]
        return [sum(clip.frames.float().mean().item() for clip in of_one) for of_one in clips_only]

    rows = [
        {"name": "clip", "prompt": message("?", "video"), "videos": [clips[1]], "images": []},
        {"name": "picture", "prompt": message("?", "image"), "videos": [], "images": [pictures[1]]},
        {"name": "text", "prompt": message("?"), "videos": [], "images": []},
        {"name": "missing", "prompt": message("?", "video"), "videos": [str(tmp_path / "no.mp4")], "images": []},
    ]
    config = GRPOVideoConfig(
        str(tmp_path / "run"),
        per_device_train_batch_size=8,
        num_generations=2,
        max_completion_length=2,
        max_steps=1,
        on_bad_media="skip",
        report_to="none",
        use_cpu=True,
        bf16=False,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOVideoTrainer("tiny", brightness, config, Dataset.from_list(rows))
    with pytest.warns(UserWarning, match="Left out"):
        trainer.train()
    expected = [
        ("clip", [clips[1]], [VideoClip]),
        ("missing", [], []),
        ("picture", [pictures[1]], [Image.Image]),
        ("text", [], []),
    ]
    assert sorted(seen[::2], key=lambda entry: entry[0]) == expected
    assert seen[::2] == seen[1::2]  # two completions of each prompt
    rewards = trainer.state.log_history[0]
    level = load_media([rows[0]["prompt"]], FEW, videos=[rows[0]["videos"]])[0][0].frames.float().mean().item()
    # of the three rows that count, one has frames
    assert rewards["rewards/brightness/mean"] == pytest.approx(level / 3, rel=1e-4)
