"""Every family, every kind of row: the forwards of this package against the processor and the model by themselves."""

import copy
from dataclasses import replace

import pytest
import torch

from tests.families.reference import logits
from tests.families.rows import KINDS, prepared, preparer
from tests.families.tiny import FAMILIES, tiny
from trl_perception.media import check_placeholders
from trl_perception.modeling import encode, on_device
from trl_perception.modeling.row_forward import row_forward
from trl_perception.modeling.vision import family_of_model

OURS = tuple(name for name in FAMILIES if name not in ("llava_onevision", "minicpmv4_6"))
COMPLETION = torch.tensor([21, 34, 55, 89, 144])
each_row = pytest.mark.parametrize("kind", KINDS)
each_family = pytest.mark.parametrize("name", OURS)


def ours(model, prompt, visual=None, positions=None):
    """Logits (P+T,V) of prompt and completion along the plain path of this package."""
    ids = torch.cat([torch.tensor(prompt.input_ids), COMPLETION])[None]
    visuals = [prompt.visual if visual is None else visual]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    width = len(COMPLETION)
    return row_forward(model, visuals=visuals, completion_width=width, positions=positions, **inputs).logits[0]


@each_family
def test_pixels_in_the_towers_format_give_the_same_numbers(name):
    family = tiny(name)
    visual = prepared(family, "video").visual
    half = copy.deepcopy(family.model).to(torch.bfloat16)
    copied = on_device(half, visual)
    casts = not name.startswith("gemma4")  # whose tower scales pixels before it casts them
    assert copied.pixel_values_videos.dtype == (torch.bfloat16 if casts else torch.float32)
    assert on_device(family.model, visual).pixel_values_videos.dtype == visual.pixel_values_videos.dtype
    tower = family_of_model(half).run_tower
    with torch.no_grad():
        assert torch.equal(tower(half.model, copied, "video"), tower(half.model, visual, "video"))


def log_probs(values):
    return torch.log_softmax(values.float(), -1)


@each_row
@each_family
def test_log_probs_equal_those_of_the_processors_own_inputs(name, kind):
    family = tiny(name)
    prompt = prepared(family, kind)
    with torch.no_grad():
        found = log_probs(ours(family.model, prompt))
    expected = log_probs(logits(family, prompt, kind, COMPLETION))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@each_row
@each_family
def test_features_of_a_frozen_tower_give_the_same(name, kind):
    family = tiny(name)
    prompt = prepared(family, kind)
    with torch.no_grad():
        expected = log_probs(ours(family.model, prompt))
        family.model.requires_grad_(False)
        merged = encode(family.model, prompt.visual)
        family.model.requires_grad_(True)
        unmerged = encode(family.model, prompt.visual)
        for known in (merged, unmerged):
            assert known.knows_features == bool(KINDS[kind])
            torch.testing.assert_close(log_probs(ours(family.model, prompt, known)), expected, atol=1e-5, rtol=0)


def inverted(prompt, _):
    """The cells of the clip from last to first."""
    cells = int(prompt.visual.video_grid_thw[0, 0])
    pixels = prompt.visual.pixel_values_videos
    return {
        "visual": replace(prompt.visual, pixel_values_videos=pixels.unflatten(0, (cells, -1)).flip(0).flatten(0, 1))
    }


def other_axes(prompt, model):
    """One position axis where the family has three; one place for all visual tokens where it has one."""
    types = torch.cat([prompt.visual.token_types, torch.zeros_like(COMPLETION)])
    if hasattr(model.model, "get_rope_index"):
        return {"positions": torch.arange(len(types)).expand(3, -1)}
    return {"positions": (types == 0).long().cumsum(0)[None]}


def zeroed(prompt, model):
    """Deepstack features of zeros, or all features where there is one depth."""
    known = encode(model.requires_grad_(False), prompt.visual)
    features, width = known.video_features.clone(), model.config.get_text_config().hidden_size
    features[:, width if features.size(1) > width else 0 :] = 0
    return {"visual": replace(known, video_features=features)}


@pytest.mark.parametrize("damage", [inverted, other_axes, zeroed])
@each_family
def test_a_deliberate_break_is_seen(name, damage):
    family = tiny(name)
    prompt = prepared(family, "video")
    expected = log_probs(logits(family, prompt, "video", COMPLETION))
    with torch.no_grad():
        broken = log_probs(ours(family.model, prompt, **damage(prompt, family.model)))
    assert (broken - expected)[-len(COMPLETION) :].abs().max() > 1e-2


@each_family
def test_a_wrong_number_of_placeholders_is_an_error(name):
    family = tiny(name)
    prompt = prepared(family, "both")
    ids, placeholders = torch.tensor([prompt.input_ids]), preparer(family).placeholder_ids
    check_placeholders(ids, torch.ones_like(ids), placeholders, [prompt.visual])
    ids[0, (prompt.visual.token_types > 0).nonzero()[0]] = 5
    with pytest.raises(ValueError, match=r"placeholder tokens but \d+ .* features"):
        check_placeholders(ids, torch.ones_like(ids), placeholders, [prompt.visual])
