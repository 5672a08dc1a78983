"""Attention of completions that share the keys of their prompt: numbers by hand, loops in float64, transformers' own."""

import math

import pytest
import torch
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from trl_perception.modeling.shared_prefix import SharedPrefixLayer, attend_to_shared_prefix

B, G, K, R, D, P, T = 2, 3, 2, 2, 4, 5, 3  # prompts, completions of each, key heads, queries a key head, sizes


def layer_of(prefix_keys, prefix_values, repeats):
    prefix = DynamicLayer()
    prefix.update(prefix_keys, prefix_values)
    return SharedPrefixLayer(prefix, repeats)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return layer_of(torch.randn(B, K, P, D), torch.randn(B, K, P, D), G)


def drawn(count=1, dtype=torch.float32):
    """Query of one token, and keys and values of `count`, for each completion."""
    query = torch.randn(B * G, K * R, 1, D, dtype=dtype)
    return query, *torch.randn(2, B * G, K, count, D, dtype=dtype)


class Attention(torch.nn.Module):
    """What transformers' function reads of a layer."""

    num_key_value_groups, is_causal, training = R, True, False


def attend(query, key, value, mask=None, **options):
    return attend_to_shared_prefix(sdpa_attention_forward, Attention(), query, key, value, mask, **options)[0]


def plain(layer, query, mask=None, scaling=D**-0.5):
    """The definition, in loops and float64."""
    keys, values = (tensor.double() for tensor in layer.whole())
    out = torch.zeros(B * G, 1, K * R, D, dtype=torch.float64)
    for row in range(B * G):
        for head in range(K * R):
            scores = [scaling * (query[row, head, 0].double() @ key).item() for key in keys[row, head // R]]
            seen = [True] * len(scores) if mask is None else mask.view(B * G, -1)[row].tolist()
            weights = [math.exp(score) if see else 0.0 for score, see in zip(scores, seen, strict=True)]
            for weight, value in zip(weights, values[row, head // R], strict=True):
                out[row, 0, head] += weight / sum(weights) * value
    return out


def test_numbers_by_hand():
    """A prompt with keys 0 and ln 2 and values 1 and 4, two completions with the key ln 3 and the values 7 and 1.

    The query 1 at scale 1 has scores 0, ln 2, ln 3: weights 1/6, 2/6, 3/6. The first completion gets (1 + 8 + 21) / 6 = 5,
    the second (1 + 8 + 3) / 6 = 2.
    """
    line = torch.tensor
    layer = layer_of(line([0.0, math.log(2)]).view(1, 1, 2, 1), line([1.0, 4.0]).view(1, 1, 2, 1), 2)
    key, value = layer.update(torch.full((2, 1, 1, 1), math.log(3)), line([7.0, 1.0]).view(2, 1, 1, 1))
    out, weights = attend_to_shared_prefix(None, None, torch.ones(2, 1, 1, 1), key, value, None, scaling=1.0)
    assert weights is None
    torch.testing.assert_close(out.flatten(), line([5.0, 2.0]))


@pytest.mark.parametrize("scaling", [None, 0.3])
def test_equals_the_definition_token_by_token(layer, scaling):
    for token in range(T):
        query, *new = drawn()
        key, value = layer.update(*new)
        assert layer.get_seq_length() == P + token + 1
        assert layer.get_mask_sizes(1) == (P + token + 2, 0)
        reference = plain(layer, query, scaling=scaling or D**-0.5)
        torch.testing.assert_close(attend(query, key, value, scaling=scaling).double(), reference, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("form", ["boolean", "added", "flash"])
def test_padding_is_not_attended_to(layer, form):
    query, *new = drawn(T)
    key, value = layer.update(*new)
    seen = torch.ones(B * G, P + T, dtype=torch.bool)
    seen[:G, :2] = False  # the first prompt is shorter by 2
    mask = {
        "boolean": seen[:, None, None],
        "added": torch.where(seen, 0.0, torch.finfo(torch.float32).min)[:, None, None],
        "flash": seen.long(),
    }[form]
    torch.testing.assert_close(
        attend(query, key, value, mask).double(), plain(layer, query, seen), atol=1e-6, rtol=1e-5
    )


def test_in_bfloat16_it_is_as_close_as_transformers_own():
    torch.manual_seed(0)
    layer = layer_of(*torch.randn(2, B, K, 64, D, dtype=torch.bfloat16).unbind(), G)
    query, *new = drawn(T, torch.bfloat16)
    key, value = layer.update(*new)
    reference = plain(layer, query)
    theirs = sdpa_attention_forward(Attention(), query, *layer.whole(), None)[0]
    ours = attend(query, key, value)
    assert ours.dtype == torch.bfloat16
    assert (ours - reference).abs().max() <= 1.5 * (theirs - reference).abs().max()


def test_another_softmax_runs_on_the_whole_keys(layer):
    query, *new = drawn(T)
    key, value = layer.update(*new)
    given = {}

    def running(module, query, key, value, mask, **options):
        given.update(options, keys=key, values=value)
        return "theirs", None

    assert attend_to_shared_prefix(running, None, query, key, value, None, softcap=30.0)[0] == "theirs"
    keys, values = layer.whole()
    assert given["softcap"] == 30.0
    assert torch.equal(given["keys"], keys)
    assert torch.equal(given["values"], values)
    assert keys.shape == (B * G, K, P + T, D)
    assert torch.equal(keys[G, :, :P], layer.prefix_keys[1])  # the first row of the second prompt
    assert torch.equal(keys[..., P:, :], layer.keys)


def test_attention_that_does_not_know_them_fails(layer):
    query, *new = drawn()
    key, value = layer.update(*new)
    with pytest.raises(RuntimeError, match="shared_prefill=False"):
        torch.nn.functional.scaled_dot_product_attention(query[:, ::R], key, value)
