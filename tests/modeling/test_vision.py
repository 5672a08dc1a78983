"""Features of a frozen tower against pixels: logits and gradients, shuffled cells, a merger that trains."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.helpers import message
from trl_perception.assets import model_path
from trl_perception.media import PromptPreparer
from trl_perception.media.frames import shuffle_cells
from trl_perception.modeling import encode, feature_reuse_unsupported_reason, row_forward

KINDS = ("video", "several", "image", "text")


@pytest.fixture(scope="module")
def prompts(clips, pictures):
    rows = [
        {"prompt": message("Which colour?", "video"), "videos": clips[:1]},
        {"prompt": message("Which?", "video", "image", "video", "image"), "videos": clips[:2], "images": pictures[:2]},
        {"prompt": message("Which colour?", "image"), "images": pictures[:1]},
        {"prompt": message("Say red.")},
    ]
    preparer = PromptPreparer(AutoProcessor.from_pretrained(model_path("tiny")))
    return dict(zip(KINDS, preparer(rows), strict=True))


def model_with(merger_trains):
    model = AutoModelForImageTextToText.from_pretrained(model_path("tiny"))
    model.model.visual.requires_grad_(False)
    model.model.visual.merger.requires_grad_(merger_trains)
    return model


def logits(model, prompt, visual):
    ids = torch.tensor([prompt.input_ids])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return row_forward(model, visuals=[visual], completion_width=0, **inputs).logits


@pytest.mark.parametrize("merger_trains", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_features_stand_for_pixels(prompts, kind, merger_trains):
    model, prompt = model_with(merger_trains), prompts[kind]
    known = encode(model, prompt.visual)
    assert all(pixels is None or pixels.is_meta for pixels in (known.pixel_values, known.pixel_values_videos))
    assert known.visual_tokens == prompt.visual.visual_tokens
    gradients = []
    for visual in (prompt.visual, known):
        model.zero_grad()
        out = logits(model, prompt, visual)
        out.pow(2).mean().backward()
        gradients.append((out.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (plain, of_pixels), (reused, of_features) = gradients
    torch.testing.assert_close(reused, plain, atol=1e-5, rtol=1e-5)
    assert of_features.keys() == of_pixels.keys()
    assert any("merger" in name for name in of_features) == (merger_trains and kind != "text")
    for name, gradient in of_pixels.items():
        torch.testing.assert_close(of_features[name], gradient, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("merger_trains", [False, True])
@pytest.mark.parametrize("kind", ["video", "several"])
def test_shuffled_features_are_the_features_of_shuffled_cells(prompts, kind, merger_trains):
    model, prompt = model_with(merger_trains), prompts[kind]
    shuffled_then_encoded = encode(model, shuffle_cells(prompt.visual, torch.Generator().manual_seed(1))[0])
    known = encode(model, prompt.visual)
    encoded_then_shuffled, orders = shuffle_cells(known, torch.Generator().manual_seed(1))
    assert all(order != sorted(order) for order in orders)
    ours, theirs = encoded_then_shuffled.video_features, shuffled_then_encoded.video_features
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert (ours - known.video_features).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["video", "several", "image"])
def test_other_pixels_are_seen_whatever_was_known_of_the_former_ones(prompts, kind):
    """Features of the replaced pixels are dropped, also when moved to another device; those of the other media stay."""
    model, prompt = model_with(False), prompts[kind]
    name = "pixel_values" if kind == "image" else "pixel_values_videos"
    other = torch.flip(getattr(prompt.visual, name), dims=[0])
    wanted = logits(model, prompt, replace(prompt.visual, **{name: other}))
    for keep in (True, False):
        known = encode(model, prompt.visual, keep_pixels=keep).to("cpu")
        assert known.knows_features
        shown = replace(known, **{name: other})
        assert shown.image_features is None or kind == "several"
        torch.testing.assert_close(logits(model, prompt, shown), wanted, atol=1e-5, rtol=1e-5)
    assert (wanted - logits(model, prompt, prompt.visual)).abs().max() > 1e-2


def test_pixels_that_were_let_go_are_not_read(prompts):
    model, prompt = model_with(False), prompts["video"]
    known = encode(model, prompt.visual)
    for shown in (
        replace(known, pixel_values_videos=torch.zeros_like(known.pixel_values_videos)),
        replace(known, video_features=None),
    ):
        with pytest.raises(ValueError, match=r"only the policy's features .*keeps_pixels = True"):
            logits(model, prompt, shown)
    known.pixel_values_videos.mul_(0)
    with pytest.raises(ValueError, match="keeps_pixels = True"):
        logits(model, prompt, known)


def test_pixels_and_features_may_be_mixed_in_a_batch(prompts):
    model, prompt = model_with(False), prompts["video"]
    ids = torch.tensor([prompt.input_ids] * 2)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    mixed = row_forward(
        model, visuals=[encode(model, prompt.visual), prompt.visual], completion_width=0, **inputs
    ).logits
    torch.testing.assert_close(mixed[0], mixed[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[:1], logits(model, prompt, prompt.visual), atol=1e-5, rtol=1e-5)


def test_a_tower_that_trains_is_not_frozen():
    model = AutoModelForImageTextToText.from_pretrained(model_path("tiny"))
    assert "is trained" in feature_reuse_unsupported_reason(model)
    model.model.visual.requires_grad_(False)
    model.model.visual.merger.requires_grad_(True)
    assert feature_reuse_unsupported_reason(model) is None
    language = LoraConfig(target_modules=r".*language_model.*(q_proj|v_proj)", r=2)
    assert feature_reuse_unsupported_reason(get_peft_model(model, language)) is None
    vision = LoraConfig(target_modules=r".*visual\.blocks.*qkv", r=2)
    adapted = get_peft_model(AutoModelForImageTextToText.from_pretrained(model_path("tiny")), vision)
    assert "is trained" in feature_reuse_unsupported_reason(adapted)
