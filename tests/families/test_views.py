"""Every family: the views of a prompt against 4D masks and against frames in another order before the processor."""

from dataclasses import replace

import pytest
import torch

from tests.families.reference import logits, processor_inputs
from tests.families.rows import media_of, prepared, preparer, row
from tests.families.test_forwards import COMPLETION, OURS, log_probs, ours
from tests.families.tiny import tiny
from tests.trainers.reference import blackening
from trl_perception.media import check_placeholders
from trl_perception.media.frames import token_frames
from trl_perception.media.images import from_pixels, to_pixels
from trl_perception.modeling import View, encode, media_masked, shuffled
from trl_perception.modeling.row_forward import row_forward
from trl_perception.views import frames_kept, patches_masked

HYBRID = ("qwen3_5", "qwen3_5_moe")
MEDIA = ("images", "video", "both")
each_family = pytest.mark.parametrize("name", OURS)


def read(model, view: View):
    """Logits (P+T,V) under a view along the plain path of this package."""
    ids = torch.cat([view.prompt_ids, COMPLETION])[None]
    with torch.no_grad():
        return row_forward(
            model,
            visuals=[view.visual],
            completion_width=len(COMPLETION),
            positions=view.positions,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
        ).logits[0]


def decoder_inputs(model, prompt):
    """What the decoder gets for the prompt as it is: embeddings with media in place, positions, per-layer inputs."""
    caught = {}
    decoder = model.get_decoder()
    hook = decoder.register_forward_pre_hook(lambda module, args, kwargs: caught.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        ours(model, prompt)
    hook.remove()
    return {
        name: value
        for name, value in caught.items()
        if name not in ("attention_mask", "cache", "past_key_values", "use_cache")
    }


@pytest.mark.parametrize("kind", MEDIA)
@pytest.mark.parametrize("name", [name for name in OURS if name not in HYBRID])
def test_media_masked_equals_a_mask_over_every_visual_key(name, kind):
    family = tiny(name)
    prompt, model = prepared(family, kind), family.model
    view = media_masked(model, torch.tensor(prompt.input_ids), prompt.visual, len(COMPLETION))
    found = log_probs(read(model, view))[-len(COMPLETION) :]
    given = decoder_inputs(model, prompt)
    width = len(prompt.input_ids) + len(COMPLETION)
    hidden = torch.cat([prompt.visual.token_types > 0, torch.zeros(len(COMPLETION), dtype=torch.bool)])
    mask = torch.ones(width, width, dtype=torch.bool).tril() & ~hidden[None]
    mask |= torch.eye(width, dtype=torch.bool)  # a visual query needs one key; its output is not used
    if name.startswith("gemma"):
        window = model.config.get_text_config().sliding_window
        assert width > window
        mask = {"full_attention": additive(mask), "sliding_attention": additive(mask.triu(1 - window))}
    else:
        mask = additive(mask)
    with torch.no_grad():
        states = model.get_decoder()(**given, attention_mask=mask).last_hidden_state
    expected = log_probs(_head(model, states))[-len(COMPLETION) :]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    shown = log_probs(ours(model, prompt))[-len(COMPLETION) :]
    assert (found - shown).abs().max() > 1e-2


@pytest.mark.parametrize("name", HYBRID)
def test_media_masked_of_a_hybrid_is_the_text_alone_at_its_own_positions(name):
    family = tiny(name)
    prompt, model = prepared(family, "video"), family.model
    ids = torch.tensor(prompt.input_ids)
    view = media_masked(model, ids, prompt.visual, len(COMPLETION))
    text = prompt.visual.token_types == 0
    positions = decoder_inputs(model, prompt)["position_ids"][-3:, 0]
    kept = torch.cat([text, torch.ones(len(COMPLETION), dtype=torch.bool)])
    assert view.prompt_ids.tolist() == ids[text].tolist()
    assert view.positions.tolist() == positions[:, kept].tolist()
    with torch.no_grad():
        expected = model(
            input_ids=torch.cat([ids[text], COMPLETION])[None], position_ids=positions[:, None, kept]
        ).logits
    torch.testing.assert_close(read(model, view), expected[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["video", "both"])
@each_family
def test_shuffled_equals_frames_in_another_order_before_the_processor(name, kind):
    family = tiny(name)
    prompt = prepared(family, kind)
    view = shuffled(torch.tensor(prompt.input_ids), prompt.visual, torch.Generator().manual_seed(3))
    cells = int(prompt.visual.video_grid_thw[0, 0])
    pixels, moved = prompt.visual.pixel_values_videos, view.visual.pixel_values_videos
    rows = len(pixels) // cells
    order = [
        next(
            cell
            for cell in range(cells)
            if torch.equal(moved[place * rows : (place + 1) * rows], pixels[cell * rows : (cell + 1) * rows])
        )
        for place in range(cells)
    ]
    assert sorted(order) == list(range(cells)) != order
    frames = prompt.frames[0].unflatten(0, (cells, -1))[order].flatten(0, 1)
    expected = processor_inputs(family, prompt, kind, [frames])
    assert expected["input_ids"][0].tolist() == prompt.input_ids  # times and placeholders stay
    if kind == "video":
        other = log_probs(logits(family, prompt, kind, COMPLETION, [frames]))
        torch.testing.assert_close(log_probs(read(family.model, view)), other, atol=1e-5, rtol=0)
        assert (other - log_probs(logits(family, prompt, kind, COMPLETION))).abs().max() > 1e-2


@each_family
def test_masked_patches_are_the_prompt_of_masked_media(name):
    """The media are blackened by a loop, then prepared: whatever the family does with pictures, tiles and frames."""
    family = tiny(name)
    prompt = prepared(family, "both")
    view = patches_masked(prompt, 0.5, torch.Generator().manual_seed(2), mask="frames")
    (clip, image), blacken = media_of("both"), blackening(torch.Generator().manual_seed(2), 0.5, "frames", 2)
    frames = torch.stack([blacken[0](frame) for frame in clip[1]])
    masked = row("both")
    blocks = masked["prompt"][0]["content"]
    blocks[0]["video"], blocks[1]["image"] = frames, from_pixels(blacken[1](to_pixels(image[1])))
    (expected,) = preparer(family)([masked])
    assert view.prompt_ids.tolist() == prompt.input_ids == expected.input_ids
    for pixels in ("pixel_values", "pixel_values_videos"):
        torch.testing.assert_close(getattr(view.visual, pixels), getattr(expected.visual, pixels))
        assert not torch.equal(getattr(view.visual, pixels), getattr(prompt.visual, pixels))


@each_family
def test_kept_frames_have_their_own_pixels_and_features(name):
    """The tower gives the pixels of the frames that are kept the features that these frames have among the others."""
    family = tiny(name)
    prompt, model = prepared(family, "both"), family.model
    model.requires_grad_(False)
    known = replace(prompt, visual=encode(model, prompt.visual))
    model.requires_grad_(True)
    for kept in ([0, 2], [1, int(token_frames(prompt.visual).max())]):
        few, features = (frames_kept(of_one, kept) for of_one in (prompt, known))
        check_placeholders(
            few.prompt_ids[None],
            torch.ones(1, len(few.prompt_ids)),
            preparer(family).placeholder_ids,
            [few.visual],
        )
        assert features.visual.knows_features
        torch.testing.assert_close(read(model, few), read(model, features), atol=1e-5, rtol=0)
        assert token_frames(few.visual).max() == 1
    windows = name.startswith("gemma")
    if windows:
        with pytest.raises(ValueError, match="Leave `model` out"):
            frames_kept(prompt, [0], model)
    else:
        everything = frames_kept(prompt, range(int(token_frames(prompt.visual).max()) + 1), model)
        everything = replace(everything, positions=everything.positions_until(len(prompt.input_ids) + len(COMPLETION)))
        torch.testing.assert_close(read(model, everything), ours(model, prompt), atol=1e-5, rtol=0)


@each_family
def test_frames_are_numbered_in_the_order_of_the_prompt(name):
    prompt = prepared(tiny(name), "both")
    frames, cells = token_frames(prompt.visual), int(prompt.visual.video_grid_thw[0, 0])
    assert cells == (8 if name in ("internvl", "internvl_moe", "smolvlm", "gemma3", "gemma4", "gemma4_large") else 4)
    seen = frames[frames >= 0].tolist()
    assert seen == sorted(seen)
    assert set(seen) == set(range(cells + 1))  # the image comes after the clip
    assert (frames >= 0).tolist() == (prompt.visual.token_types > 0).tolist()


def additive(mask):
    return torch.where(mask, 0.0, torch.finfo(torch.float32).min)[None, None]


def _head(model, states):
    values = model.lm_head(states)[0]
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return values if cap is None else cap * torch.tanh(values / cap)
