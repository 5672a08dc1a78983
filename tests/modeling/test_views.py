"""Media-masked and shuffled views against explicit references."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl.trainer.utils import add_fused_lm_head

from tests.helpers import message
from tests.trainers.reference import zeroed_tower
from trl_perception.assets import model_path
from trl_perception.media import PromptPreparer
from trl_perception.modeling import encode, forward_kwargs, group_forward
from trl_perception.modeling.positions import apply_position_rule
from trl_perception.modeling.row_forward import row_forward
from trl_perception.modeling.views import (
    View,
    frames_shuffled,
    media_masked,
    media_masked_recomputed,
    original_positions,
    seeded,
    shuffled,
    with_media,
    zeroed,
)


@pytest.fixture(scope="module")
def model():
    return AutoModelForImageTextToText.from_pretrained(model_path("tiny")).eval()


@pytest.fixture(scope="module")
def preparer():
    return PromptPreparer(AutoProcessor.from_pretrained(model_path("tiny")))


@pytest.fixture(scope="module")
def prompts(preparer, clips, pictures):
    rows = {
        "video": {"prompt": message("Which colour?", "video"), "videos": clips[:1]},
        "several": {
            "prompt": message("Which one?", "video", "image", "video"), "videos": clips[:2], "images": pictures[:1]
        },
        "image": {"prompt": message("Which colour?", "image"), "images": pictures[:1]},
        "text": {"prompt": message("Say red.")},
    }  # fmt: skip
    return dict(zip(rows, preparer(list(rows.values())), strict=True))


COMPLETIONS = torch.tensor([[20, 30, 40, 50, 60], [21, 31, 41, 51, 61]])


def logits(model, view, **extra):
    """Logits that predict the completions, two rows of five tokens."""
    ids = torch.cat([view.prompt_ids.expand(2, -1), COMPLETIONS], 1)
    kwargs = {"attention_mask": torch.ones_like(ids), **extra}
    with torch.no_grad():
        output = row_forward(
            model, visuals=[view.visual] * 2, completion_width=5, positions=view.positions, input_ids=ids, **kwargs
        )
    return output.logits[:, -6:-1]


def ids_of(prompt):
    return torch.tensor(prompt.input_ids)


@pytest.mark.parametrize("kind", ["video", "several", "image"])
def test_media_masked_equals_masking_every_visual_key(model, prompts, kind):
    prompt = prompts[kind]
    text_alone = logits(model, media_masked(model, ids_of(prompt), prompt.visual, 5))
    # The reference: the whole prompt at its positions, with a 4D mask that hides visual keys from every query.
    width = len(prompt.input_ids) + 5
    hidden = torch.cat([prompt.visual.token_types > 0, torch.zeros(5, dtype=torch.bool)])
    mask = torch.ones(width, width, dtype=torch.bool).tril() & ~hidden[None, :]
    mask |= torch.eye(width, dtype=torch.bool)  # a visual query still needs one key; its output is not used
    kwargs = forward_kwargs(model, [prompt.visual], len(prompt.input_ids), width)
    positions, _ = model.model.get_rope_index(
        torch.cat([ids_of(prompt), COMPLETIONS[0]])[None], **{k: v for k, v in kwargs.items() if "pixel" not in k}
    )
    full = View(ids_of(prompt), prompt.visual, positions[:, 0])
    masked = logits(model, full, attention_mask=mask[None, None].expand(2, -1, -1, -1))
    torch.testing.assert_close(text_alone, masked, atol=1e-5, rtol=1e-5)
    assert (text_alone - logits(model, full)).abs().max() > 1e-4  # the media do matter


def test_positions_of_a_prompt_are_found_once(model, prompts, monkeypatch):
    prompt = replace(prompts["several"], visual=replace(prompts["several"].visual))  # of which nothing is known yet
    found, body = [], type(model.model).get_rope_index

    def counted(self, input_ids, **inputs):
        found.append(input_ids.size(1))
        return body(self, input_ids, **inputs)

    monkeypatch.setattr(type(model.model), "get_rope_index", counted)
    ids = ids_of(prompt)
    short, long = (original_positions(model, ids, prompt.visual, width) for width in (1, 7))
    assert found == [len(ids) + 1]
    assert torch.equal(long[:, : len(ids) + 1], short)
    assert torch.equal(long[:, len(ids) :] - long[:, len(ids), None], torch.arange(7).expand(3, -1))
    apply_position_rule(model, "released")  # another rule, other positions
    try:
        original_positions(model, ids, prompt.visual, 1)
        assert len(found) == 2
    finally:
        del model.model.get_rope_index


@pytest.mark.parametrize("known", ["pixels", "features", "features before a merger that trains"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["video", "several", "image"])
def test_zeroed_equals_a_tower_that_gives_zeros(prompts, kind, packed, known):
    model = AutoModelForImageTextToText.from_pretrained(model_path("tiny")).eval()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    prompt = prompts[kind]
    visual = prompt.visual
    if known != "pixels":
        model.model.visual.requires_grad_(False)
        model.model.visual.merger.requires_grad_(known != "features")
        visual = encode(model, visual)
    ids = torch.cat([ids_of(prompt).expand(2, -1), COMPLETIONS], 1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "fused_lm_head": True}

    def logps(visual, forward, **extra):
        with torch.no_grad():
            return forward(model, completion_width=5, **inputs, **extra).log_probs[:, -5:]

    with zeroed_tower(model):
        expected = logps(prompt.visual, row_forward, visuals=[prompt.visual] * 2)
    view = zeroed(model, ids_of(prompt), visual)
    assert view.positions is None
    assert view.visual.visual_tokens == prompt.visual.visual_tokens
    if packed:
        found = logps(view.visual, group_forward, visuals=[view.visual], runs=[2])
    else:
        found = logps(view.visual, row_forward, visuals=[view.visual] * 2)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    seen = logps(prompt.visual, row_forward, visuals=[prompt.visual] * 2)
    assert (found - seen).abs().max() > 1e-4  # the media do matter


def test_media_masked_views_differ_in_positions_alone(model, prompts):
    prompt = prompts["video"]
    original = media_masked(model, ids_of(prompt), prompt.visual, 5)
    moved = media_masked_recomputed(ids_of(prompt), prompt.visual)
    assert torch.equal(original.prompt_ids, moved.prompt_ids)
    assert moved.positions is None
    assert (logits(model, original) - logits(model, moved)).abs().max() > 1e-5


def test_media_masked_text_is_the_prompt_itself(model, prompts):
    view = media_masked(model, ids_of(prompts["text"]), prompts["text"].visual, 5)
    assert view.prompt_ids.tolist() == prompts["text"].input_ids


def test_shuffled_equals_frames_out_of_order_through_the_processor(model, prompts, preparer):
    """A tower without attention between cells: permuting cells of patches equals permuting pairs of raw frames."""
    prompt = prompts["video"]
    view = shuffled(ids_of(prompt), prompt.visual, torch.Generator().manual_seed(3))
    cells = prompt.frames[0].view(4, 2, *prompt.frames[0].shape[1:])
    order = torch.randperm(4, generator=torch.Generator().manual_seed(3))
    assert order.tolist() != [0, 1, 2, 3]
    torch.testing.assert_close(view.visual.pixel_values_videos, preparer.pixels([cells[order].flatten(0, 1)]))
    assert (logits(model, view) - logits(model, with_media(ids_of(prompt), prompt.visual))).abs().max() > 1e-5


def test_frames_shuffled_permutes_raw_frames(prompts, preparer):
    prompt = prompts["video"]
    view = frames_shuffled(prompt, ids_of(prompt), preparer, torch.Generator().manual_seed(0))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(view.visual.pixel_values_videos, preparer.pixels([prompt.frames[0][order]]))


@pytest.mark.parametrize("kind", ["image", "text"])
def test_without_a_video_there_is_no_shuffled_view(prompts, preparer, kind):
    prompt, generator = prompts[kind], torch.Generator().manual_seed(0)
    assert shuffled(ids_of(prompt), prompt.visual, generator) is None
    assert frames_shuffled(prompt, ids_of(prompt), preparer, generator) is None


def test_seeds_differ_between_prompts_steps_and_runs_and_repeat():
    def first(*args):
        return torch.randint(0, 2**40, (1,), generator=seeded(*args)).item()

    ids = torch.tensor([1, 2, 3])
    drawn = [first(0, 0, ids), first(1, 0, ids), first(0, 1, ids), first(0, 0, torch.tensor([1, 2, 4]))]
    assert len(set(drawn)) == 4
    assert first(0, 0, ids.clone()) == drawn[0]
