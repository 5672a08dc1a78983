"""Attention within frames and windows in one call a length: the outputs and gradients of one call a segment."""

import copy
import math
import pickle
from itertools import pairwise

import pytest
import torch

from tests.families.rows import prepared
from tests.families.tiny import tiny
from trl_perception.modeling import batch_segments
from trl_perception.modeling.segment_attention import SEGMENT_ATTENTION, segment_attention, segments_of


def test_segments_by_hand():
    # Lengths 2, 1, 0, 2, 1: the two of length 1 are positions 2 and 5, the two of length 2 are 0-1 and 3-4.
    groups, order, inverse = segments_of(torch.tensor([0, 2, 3, 3, 5, 6]))
    assert groups == [(1, 2), (2, 2)]
    assert order.tolist() == [2, 5, 0, 1, 3, 4]
    assert inverse.tolist() == [2, 3, 0, 4, 5, 1]
    assert segments_of(torch.tensor([0, 3, 6])) == ([(3, 2)], None, None)


def test_attention_by_hand():
    # Segment {0}: its own value. Segment {1, 2} with q k = (0, ln 3): weights 1/4 and 3/4 of the values 4 and 8, 7.
    query = torch.tensor([0.0, 1.0, 1.0]).view(1, 1, 3, 1)
    key = torch.tensor([5.0, 0.0, math.log(3)]).view(1, 1, 3, 1)
    value = torch.tensor([2.0, 4.0, 8.0]).view(1, 1, 3, 1)
    output, _ = segment_attention(
        None, query, key, value, None, cu_seq_lens_q=torch.tensor([0, 1, 3], dtype=torch.int32), scaling=1.0
    )
    assert output.flatten().tolist() == pytest.approx([2.0, 7.0, 7.0])


@pytest.mark.parametrize(("borders", "lengths"), [((0, 4, 8, 12), 1), ((0, 1, 5, 6, 12), 3), ((0, 12), 1)])
def test_the_formula_in_float64(borders, lengths, monkeypatch):
    calls = []
    attention = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        "trl_perception.modeling.segment_attention.scaled_dot_product_attention",
        lambda *args, **kwargs: calls.append(args) or attention(*args, **kwargs),
    )
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 12, 5, dtype=torch.float64)
    found, _ = segment_attention(None, query, key, value, None, cu_seq_lens_q=torch.tensor(borders), scaling=0.3)
    for start, end in pairwise(borders):
        for head in range(2):
            for token in range(start, end):
                weights = torch.exp(0.3 * key[0, head, start:end] @ query[0, head, token])
                expected = weights @ value[0, head, start:end] / weights.sum()
                torch.testing.assert_close(found[0, token, head], expected, atol=1e-12, rtol=1e-12)
    assert len(calls) == lengths


@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"])
def test_features_and_gradients_are_those_of_a_call_a_segment(name):
    family = tiny(name)
    visual, found = prepared(family, "video").visual, []
    for batched in (False, True):
        model = copy.deepcopy(family.model).double()
        if batched:
            batch_segments(model)
            model = pickle.loads(pickle.dumps(copy.deepcopy(model)))
            assert model.model.visual.config._attn_implementation == SEGMENT_ATTENTION
            assert "segments" not in model.config.to_json_string()
        assert model.config.get_text_config()._attn_implementation == "sdpa"
        pixels = visual.pixel_values_videos.double()
        output = model.model.get_video_features(pixels, visual.video_grid_thw, return_dict=True)
        features = torch.cat(tuple(output.pooler_output))
        features.pow(2).sum().backward()
        found.append((features, {key: value.grad for key, value in model.named_parameters() if value.grad is not None}))
    (features, gradients), (others, other_gradients) = found
    torch.testing.assert_close(others, features, atol=1e-10, rtol=1e-10)
    assert gradients.keys() == other_gradients.keys()
    for key, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[key], gradient, atol=1e-9, rtol=1e-9)


def test_another_kernel_is_left_alone():
    model = copy.deepcopy(tiny("qwen2_5_vl").model)
    model.set_attn_implementation("eager")
    batch_segments(model)
    assert model.model.visual.config._attn_implementation == "eager"
    others = copy.deepcopy(tiny("internvl").model)
    batch_segments(others)
    assert others.config.vision_config._attn_implementation == "sdpa"
