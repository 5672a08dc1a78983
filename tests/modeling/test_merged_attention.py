"""Attention merged from two sets of keys against attention over the joined keys."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from trl_perception.modeling import merged_attention as module
from trl_perception.modeling.merged_attention import can_merge, merged_attention


def states(rows, heads, groups, prefix, width, dim, dtype=torch.float64):
    torch.manual_seed(0)
    shapes = [(rows, heads, width, dim), *2 * [(1, groups, prefix, dim)], *2 * [(rows, groups, width, dim)]]
    return [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes]


def joined(query, prefix_key, prefix_value, key, value, scale):
    """The same with one key after the other, under a mask that is written out."""
    rows, heads, width, _ = query.shape
    keys, values = (
        torch.cat([shared.expand(rows, -1, -1, -1), own], 2).repeat_interleave(heads // key.size(1), 1)
        for shared, own in ((prefix_key, key), (prefix_value, value))
    )
    prefix = prefix_key.size(2)
    seen = torch.ones(width, prefix + width, dtype=torch.bool).tril(prefix)
    scores = (scale * query @ keys.mT).masked_fill(~seen, -math.inf)
    return scores.softmax(-1) @ values


def test_one_query_by_hand():
    # One head of one dimension, q = 1, scale 1. Scores 0 of the prefix and ln 3 of the own key: probabilities 1/4 and 3/4.
    # out = 2/4 + 3*6/4 = 5.  d out: v (1/4, 3/4); k = p (v - out) q: 1/4 (2-5) = -3/4 and 3/4 (6-5) = 3/4;
    # q = sum p (v - out) k = 3/4 ln 3.
    inputs = [
        torch.full((1, 1, 1, 1), value, dtype=torch.float64, requires_grad=True) for value in (1, 0, 2, math.log(3), 6)
    ]
    out = merged_attention(*inputs, scale=1.0)
    assert out.item() == pytest.approx(5)
    gradients = [gradient.item() for gradient in torch.autograd.grad(out.sum(), inputs)]
    assert gradients == pytest.approx([0.75 * math.log(3), -0.75, 0.25, 0.75, 0.75])


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize(("rows", "prefix", "width"), [(1, 1, 1), (3, 5, 4), (2, 40, 33)])
def test_it_is_the_attention_over_the_joined_keys(rows, prefix, width, heads, groups):
    inputs = states(rows, heads, groups, prefix, width, 8)
    ours, theirs = merged_attention(*inputs, 0.3), joined(*inputs, 0.3)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)
    weights = torch.randn_like(ours)
    for found, wanted in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((theirs * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


def test_scores_that_are_far_apart_keep_the_larger_part():
    query, *others = [tensor.detach().float() for tensor in states(1, 1, 1, 2, 2, 4)]
    for inputs in ((query, *others), (-query, *others)):  # e^(200 |q k|) overflows float32
        torch.testing.assert_close(merged_attention(*inputs, 200.0), joined(*inputs, 200.0), atol=1e-4, rtol=1e-4)


def test_bfloat16_is_no_further_from_float64_than_one_call():
    inputs = states(4, 4, 2, 300, 30, 32, torch.bfloat16)
    exact = joined(*(tensor.double() for tensor in inputs), 32**-0.5)
    ours = (merged_attention(*inputs) - exact).abs().mean()
    seen = torch.ones(30, 330, dtype=torch.bool).tril(300)
    keys, values = (
        torch.cat([a.expand(4, -1, -1, -1), b], 2).repeat_interleave(2, 1)
        for a, b in ((inputs[1], inputs[3]), (inputs[2], inputs[4]))
    )
    theirs = (torch.nn.functional.scaled_dot_product_attention(inputs[0], keys, values, attn_mask=seen) - exact).abs()
    assert ours < 1.5 * theirs.mean()  # one more rounding of each part


def test_autocast_runs_it_in_its_type():
    inputs = states(2, 4, 2, 5, 3, 8, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = merged_attention(*inputs)
    assert out.dtype == torch.bfloat16
    assert all(gradient.dtype == torch.float32 for gradient in torch.autograd.grad(out.sum(), inputs))


def test_nothing_of_the_size_of_the_joined_keys_is_kept_for_the_backward():
    inputs = states(8, 4, 2, 500, 10, 8, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.numel()) or tensor, lambda kept: kept
    ):
        merged_attention(*inputs)
    assert sum(kept) <= sum(tensor.numel() for tensor in inputs) + 8 * 4 * 10 * (
        8 + 1
    )  # the output and its log-sum-exp


def test_values_of_another_width_are_not_merged():
    query, _, _, key, value = states(1, 4, 2, 5, 3, 8)
    assert can_merge(query, key, value)
    assert not can_merge(query, key, value[..., :4])


def test_the_kernels_of_a_gpu_take_and_return_these_shapes():
    """Without a GPU: the shapes that PyTorch's kernels declare."""
    with FakeTensorMode():
        inputs = [
            torch.empty(shape, dtype=torch.bfloat16, device="cuda", requires_grad=True)
            for shape in ((4, 8, 10, 64), *2 * [(1, 2, 500, 64)], *2 * [(4, 2, 10, 64)])
        ]
        query, prefix_key, prefix_value, *_ = inputs
        folded = module._fold(query, 2)
        out, total, state = module._attend(folded, prefix_key, prefix_value, False, 0.1)
        gradients = module._gradients(
            folded, folded, out, total[..., None], prefix_key, prefix_value, False, 0.1, state
        )
        assert [part.shape for part in gradients] == [folded.shape, prefix_key.shape, prefix_value.shape]
        assert merged_attention(*inputs).shape == query.shape
