"""Attention over a packed row against attention with the explicit mask, head by head in float64."""

import math

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import create_block_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from trl_perception.modeling import packed_attention
from trl_perception.modeling.packed_attention import (
    block_mask_of,
    compiled_block_mask,
    follow_packings,
    mask_of,
    run_and_segment,
    split_attention,
)
from trl_perception.modeling.packing import PackedMask, pack


class Module(torch.nn.Module):
    """The attributes of an attention module that the interface reads."""

    num_key_value_groups = 2
    is_causal = True


def layouts():
    equal = torch.ones(4, 9, dtype=torch.long)
    ragged = torch.tensor([[0, 1, 1, 1, 1, 1], [0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    short = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]])
    return {
        "equal lengths": pack(equal, 4, [4]),
        "unequal lengths, two prompts": pack(ragged, 3, [2, 2]),
        "prompts of one token": pack(short, 3, [1, 1]),
        "one row each": pack(ragged, 3, [1, 1, 1, 1]),
    }


def states(length):
    torch.manual_seed(0)
    shapes = {"query": (1, 4, length, 8), "key": (1, 2, length, 8), "value": (1, 2, length, 8)}
    return {name: torch.randn(shape, dtype=torch.float64, requires_grad=True) for name, shape in shapes.items()}


def written_out(packing, query, key, value, scaling):
    """One softmax per head and query over the keys that the rule allows: (1,L,H,d)."""
    run, segment = run_and_segment(packing)
    rows = []
    for at in range(packing.length):
        keys = [
            k for k in range(at + 1) if run[k] == run[at] and (segment[k] == 0 or segment[k] == segment[at])
        ]  # fmt: skip
        heads = []
        for head in range(query.size(1)):
            scores = [scaling * (query[0, head, at] @ key[0, head // 2, k]) for k in keys]
            weights = torch.stack(scores).softmax(0)
            heads.append(sum(weight * value[0, head // 2, k] for weight, k in zip(weights, keys, strict=True)))
        rows.append(torch.stack(heads))
    return torch.stack(rows)[None]


def bottom_right(module, query, key, value, attention_mask, scaling=None, position_ids=None, **kwargs):
    """A stand-in with flash attention's semantics: no mask, causality counted from the bottom right."""
    assert attention_mask is None
    assert position_ids is None  # flash attention treats positions that restart as further sequences
    seen = torch.ones(query.size(2), key.size(2), dtype=torch.bool).tril(key.size(2) - query.size(2))
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key.repeat_interleave(2, 1), value.repeat_interleave(2, 1), attn_mask=seen, scale=scaling
    )
    return out.transpose(1, 2), None


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("backend", ["sdpa", "flash"])
@pytest.mark.parametrize("name", layouts())
def test_two_calls_a_run_are_the_attention_under_the_mask(name, backend, joined, monkeypatch):
    packing, scaling = layouts()[name], 1 / math.sqrt(8)
    if joined:
        monkeypatch.setattr(packed_attention, "can_merge", lambda *tensors: False)
    inputs = states(packing.length)
    running = bottom_right if backend == "flash" else ALL_ATTENTION_FUNCTIONS["sdpa"]
    options = {"masked": backend != "flash", "scaling": scaling, "dropout": 0.0, "position_ids": torch.zeros(1, 1)}
    out, _ = split_attention(running, Module(), *inputs.values(), packing, **options)
    torch.testing.assert_close(out, written_out(packing, **inputs, scaling=scaling))

    weights = torch.randn_like(out)
    fast = torch.autograd.grad((out * weights).sum(), inputs.values())
    slow = torch.autograd.grad((written_out(packing, **inputs, scaling=scaling) * weights).sum(), inputs.values())
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("name", layouts())
def test_the_block_mask_says_the_same(name):
    packing = layouts()[name]
    run, segment = run_and_segment(packing)
    block = mask_of(packing, "flex_attention")
    zero = torch.zeros((), dtype=torch.long)
    for query in range(packing.length):
        for key in range(packing.length):
            wanted = key <= query and run[key] == run[query] and segment[key] in (0, segment[query])
            assert bool(block.mask_mod(zero, zero, torch.tensor(query), torch.tensor(key))) == bool(wanted)


@pytest.mark.slow  # the compiler takes half a minute
def test_the_block_mask_is_compiled_for_all_lengths_at_once():
    torch.compiler.reset()
    counters.clear()
    for prompt, completion in ((200, 60), (300, 60), (410, 33), (555, 70), (901, 31)):
        packing = pack(torch.ones(4, prompt + completion, dtype=torch.long), completion, [4])
        ours, theirs = (block_mask_of(packing, create) for create in (compiled_block_mask(), create_block_mask))
        assert torch.equal(ours.to_dense(), theirs.to_dense())
    assert counters["stats"]["unique_graphs"] == 2  # of the first length, and of any


def test_other_calls_pass_through_untouched():
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    follow_packings("sdpa")
    follow_packings("sdpa")  # registered once
    taught = ALL_ATTENTION_FUNCTIONS["sdpa"]
    assert taught is before or not getattr(before, "follows_packings", False)
    inputs = {name: value.detach() for name, value in states(6).items()}
    ours, _ = taught(Module(), *inputs.values(), None, scaling=0.3)
    keys, values = (inputs[name].repeat_interleave(2, 1) for name in ("key", "value"))
    theirs = torch.nn.functional.scaled_dot_product_attention(inputs["query"], keys, values, is_causal=True, scale=0.3)
    torch.testing.assert_close(ours, theirs.transpose(1, 2))


def test_a_packed_mask_reaches_the_layout():
    packing = layouts()["equal lengths"]
    follow_packings("sdpa")
    inputs = states(packing.length)
    out, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](Module(), *inputs.values(), PackedMask.of(packing), scaling=0.5)
    assert packing.served == 1
    torch.testing.assert_close(out, written_out(packing, **inputs, scaling=0.5))
