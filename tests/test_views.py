"""The public views of a prompt: what each shows, by hand and against frames that are changed before the processor."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.modeling.test_views import COMPLETIONS, logits
from tests.trainers.reference import blackening, inputs_of
from trl_perception.assets import model_path
from trl_perception.media import PromptPreparer
from trl_perception.media.frames import token_frames
from trl_perception.modeling import View, encode, forward_kwargs
from trl_perception.modeling import media_masked as masked_at_positions
from trl_perception.views import frames_kept, frames_shuffled, media_masked, noised, patches_masked, seeded


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(model_path("tiny")).eval()


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(model_path("tiny"))


@pytest.fixture(scope="module")
def prompts(processor, rows):
    kinds = {
        "video": rows["video"][0],
        "image": rows["image"][0],
        "several": rows["several"][0],
        "text": rows["text"][0],
    }
    return dict(zip(kinds, PromptPreparer(processor)([*kinds.values()]), strict=True))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mask", ["frames", "tube"])
@pytest.mark.parametrize("kind", ["video", "image", "several"])
def test_masked_patches_are_those_drawn(prompts, processor, kind, mask):
    """The pixels are the processor's for media whose patches a loop blackened before anything was resized."""
    prompt = prompts[kind]
    ids = torch.tensor(prompt.input_ids)
    view = patches_masked(prompt, 0.6, seeded(3, 7, ids), mask=mask)
    expected = inputs_of(processor, prompt.row, patches=(3, 7, 0.6, mask))
    assert view.prompt_ids.tolist() == prompt.input_ids
    assert view.positions is None
    for name in ("pixel_values", "pixel_values_videos"):
        assert (getattr(view.visual, name) is None) == (name not in expected)
        if name in expected:
            torch.testing.assert_close(getattr(view.visual, name), expected[name])
            assert not torch.equal(getattr(view.visual, name), getattr(prompt.visual, name))


def test_patches_are_masked_before_a_clip_is_resized(processor, tmp_path):
    """112x112 pixels shown as 56x56: a masked patch of 14 pixels is 7 pixels wide."""
    clip = torch.full((4, 3, 112, 112), 255, dtype=torch.uint8)
    block = {"type": "video", "video": clip, "resized_height": 56, "resized_width": 56}
    row = {"prompt": [{"role": "user", "content": [block, {"type": "text", "text": "?"}]}]}
    (prompt,) = PromptPreparer(processor)([row])
    (medium,) = blackening(generator(5), 0.5, "tube", 1)
    expected = medium(clip[0])
    _, (frames,) = prompt.preparer.read_again(prompt, lambda: blackening(generator(5), 0.5, "tube", 1)[0])
    assert frames.shape == (4, 3, 56, 56)
    # the middle of each patch, away from its neighbours
    assert torch.equal(frames[0, 0, 3::7, 3::7] > 127, expected[0, 7::14, 7::14] > 127)
    assert 0 < (frames[0] > 127).float().mean() < 1
    assert prompt.frames[0].min() == 255  # what is shared is not written to


def test_masking_everything_or_nothing(prompts):
    for prompt in (prompts["video"], prompts["image"]):
        same, black = (patches_masked(prompt, p, generator()).visual for p in (0.0, 1.0))
        for name in ("pixel_values", "pixel_values_videos"):
            pixels = getattr(prompt.visual, name)
            if pixels is not None:
                assert torch.equal(getattr(same, name), pixels)
                # every patch is one and the same, but for the normalisation of three colours
                assert (getattr(black, name) == getattr(black, name)[:1]).all()


def test_a_prompt_without_what_a_view_changes_has_none(prompts, model):
    text, image = prompts["text"], prompts["image"]
    assert patches_masked(text, 0.5, generator()) is None
    assert noised(text, 0.5, generator()) is None
    assert media_masked(text) is None
    assert frames_kept(text, [], model) is None
    assert frames_shuffled(text, generator()) is None
    assert frames_shuffled(image, generator()) is None


def test_noise_by_hand(prompts):
    prompt = prompts["image"]
    view = noised(prompt, 0.1, generator(4))
    (image,) = prompt.images
    pixels = torch.tensor(image.getdata()).view(image.height, image.width, 3).permute(2, 0, 1)
    noise = torch.randn(pixels.shape, generator=generator(4))
    expected = (pixels + 25.5 * noise).round().clamp(0, 255).to(torch.uint8)
    again = prompt.preparer.repainted(prompt, images=[Image.fromarray(expected.permute(1, 2, 0).numpy())])
    assert torch.equal(view.visual.pixel_values, again.pixel_values)
    assert torch.equal(noised(prompt, 0.0, generator()).visual.pixel_values, prompt.visual.pixel_values)


@pytest.mark.parametrize("kind", ["video", "several"])
def test_shuffled_frames_are_in_another_order(prompts, kind):
    prompt = prompts[kind]
    view = frames_shuffled(prompt, generator(1))
    assert view.visual.pixel_values_videos.shape == prompt.visual.pixel_values_videos.shape
    assert not torch.equal(view.visual.pixel_values_videos, prompt.visual.pixel_values_videos)
    assert view.visual.pixel_values is prompt.visual.pixel_values


@pytest.mark.parametrize("kind", ["video", "image", "several"])
def test_masked_media_keep_positions_with_the_model_alone(prompts, model, kind):
    prompt = prompts[kind]
    ids = torch.tensor(prompt.input_ids)
    view, wide = media_masked(prompt, model), masked_at_positions(model, ids, prompt.visual, 5)
    assert torch.equal(view.positions_until(wide.positions.size(1)), wide.positions)
    assert media_masked(prompt).positions is None
    assert media_masked(prompt).prompt_ids.tolist() == view.prompt_ids.tolist() == wide.prompt_ids.tolist()


def masked_logits(model, prompt, kept):
    """Logits of the completions under a mask (1,1,S,S) over the tokens of the frames that are not kept."""
    width = len(prompt.input_ids) + 5
    frames = torch.cat([token_frames(prompt.visual), torch.full((5,), -1)])
    hidden = (frames >= 0) & ~torch.isin(frames, torch.tensor(kept))
    mask = torch.ones(width, width, dtype=torch.bool).tril() & ~hidden[None]
    mask |= torch.eye(width, dtype=torch.bool)  # a hidden query needs one key; its output is not used
    kwargs = forward_kwargs(model, [prompt.visual], len(prompt.input_ids), width)
    ids = torch.cat([torch.tensor(prompt.input_ids), COMPLETIONS[0]])[None]
    positions, _ = model.model.get_rope_index(ids, **{k: v for k, v in kwargs.items() if "pixel" not in k})
    view = View(torch.tensor(prompt.input_ids), prompt.visual, positions[:, 0])
    return logits(model, view, attention_mask=mask[None, None].expand(2, -1, -1, -1))


@pytest.mark.parametrize("known", ["pixels", "features"])
@pytest.mark.parametrize(("kind", "kept"), [("video", [0, 3]), ("several", [1, 4, 8]), ("several", [2]), ("image", [])])
def test_kept_frames_equal_a_mask_over_the_others(prompts, model, kind, kept, known):
    """Two clips of 8 frames are 4 cells each, and an image comes after them."""
    prompt = prompts[kind]
    expected = masked_logits(model, prompt, kept)
    if known == "features":
        model.requires_grad_(False)
        prompt = type(prompt)(**{**vars(prompt), "visual": encode(model, prompt.visual)})
    view = frames_kept(prompt, kept, model)
    view = View(view.prompt_ids, view.visual, view.positions_until(len(view.prompt_ids) + 5))
    torch.testing.assert_close(logits(model, view), expected, atol=1e-5, rtol=1e-5)
    assert view.visual.knows_features == (known == "features" and bool(kept))
    assert int(token_frames(view.visual).max()) + 1 == len(kept)


def test_frames_kept_at_positions_of_their_own_are_a_shorter_clip(prompts, processor, model):
    """Without the model: the prompt is the one that the processor makes of the frames that are left."""
    prompt = prompts["video"]
    view = frames_kept(prompt, [1, 2])
    rate = {"sample_fps": 2.0}  # seconds between cells as before
    block = {"type": "video", "video": prompt.frames[0][2:6], **rate}
    content = [block, prompt.row["prompt"][0]["content"][-1]]
    (shorter,) = PromptPreparer(processor)([{"prompt": [{"role": "user", "content": content}]}])
    assert view.prompt_ids.tolist() == shorter.input_ids
    assert view.positions is None
    ours, theirs = (
        logits(model, View(torch.tensor(shorter.input_ids), visual)) for visual in (view.visual, shorter.visual)
    )
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda prompt: patches_masked(prompt, 1.5, generator()), "p is 1.5"),
        (lambda prompt: patches_masked(prompt, 0.5, generator(), mask="cells"), "mask 'cells'"),
        (lambda prompt: noised(prompt, -1.0, generator()), "std is -1.0"),
        (lambda prompt: frames_kept(prompt, [0, 99]), "index 99 is given, and the prompt has"),
        (
            lambda prompt: patches_masked(type(prompt)(**{**vars(prompt), "preparer": None}), 0.5, generator()),
            "this view needs the prompt's images and frames",
        ),
        (lambda prompt: media_masked(type(prompt)(**{**vars(prompt), "visual": None})), "TRL prepared the images"),
    ],
)
def test_bad_arguments_are_refused(prompts, call, words):
    with pytest.raises(ValueError, match=words):
        call(prompts["video"])


def test_a_view_of_other_pixels_has_features_of_its_own(prompts, model):
    """Features that were computed from the prompt's pixels do not come with it."""
    model.requires_grad_(False)
    prompt = prompts["several"]
    prompt = type(prompt)(**{**vars(prompt), "visual": encode(model, prompt.visual)})
    for view in (patches_masked(prompt, 0.5, generator()), noised(prompt, 0.1, generator())):
        assert not view.visual.knows_features
    shuffled = frames_shuffled(prompt, generator()).visual
    assert shuffled.image_features is prompt.visual.image_features
    assert shuffled.video_features is None
