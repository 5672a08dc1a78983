"""The packed row: the place of every token, the keys it attends to, and unpacking."""

import pytest
import torch

from trl_perception.modeling.packed_attention import run_and_segment
from trl_perception.modeling.packing import PackedMask, pack, packed_positions, packing_of

# Prompts of 3, 3 and 2 tokens in a width of 3, completions of 2, 1 and 2 tokens in a width of 2; rows 0 and 1 share theirs.
#          | prompt | compl. |
IDS = torch.tensor([[1, 2, 3, 10, 11], [1, 2, 3, 20, 99], [99, 7, 8, 30, 31]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [0, 1, 1, 1, 1]])


def packing():
    return pack(MASK, completion_width=2, runs=[2, 1])


def test_a_prompt_is_there_once_and_each_segment_starts_with_its_last_token():
    # run 1: 1 2 | 3 10 11 | 3 20        run 2: 7 | 8 30 31
    assert IDS.flatten()[packing().source].tolist() == [1, 2, 3, 10, 11, 3, 20, 7, 8, 30, 31]


def test_every_token_of_the_rows_is_found_again():
    layout = packing()
    packed = IDS.flatten()[layout.source]
    assert torch.equal(packed[layout.index][MASK.bool()], IDS[MASK.bool()])
    # the shared prefix of rows 0 and 1 is one place, their last prompt tokens are two
    assert layout.index[0, :2].tolist() == layout.index[1, :2].tolist() == [0, 1]
    assert (layout.index[0, 2].item(), layout.index[1, 2].item()) == (2, 5)


def test_taking_rows_is_gathering_places():
    layout = packing()
    values = torch.arange(22.0).view(1, 11, 2)
    # row 0's completion stands at 3 and 4, row 1's at 6, row 2's at 9 and 10
    taken = layout.take(values, slice(-2, None))
    assert taken[0].tolist() == [[6, 7], [8, 9]]
    assert taken[1, 0].tolist() == [12, 13]
    assert taken[2].tolist() == [[18, 19], [20, 21]]
    heads = layout.take(values[:, None].expand(1, 3, 11, 2), slice(-2, None))
    assert heads.shape == (3, 3, 2, 2)
    assert torch.equal(heads[:, 1], taken)


def test_part_of_the_rows_is_found_as_well():
    layout = packing().of(slice(1, 3), slice(1, None))
    values = torch.arange(11.0).view(1, 11, 1)
    # row 1: prompt tokens at 1 and 5, completion at 6; row 2: 7, 8, 9, 10
    assert layout.take(values, slice(None))[0, :3, 0].tolist() == [1, 5, 6]
    assert layout.take(values, slice(None))[1, :, 0].tolist() == [7, 8, 9, 10]


def test_a_key_is_visible_if_earlier_and_in_the_prompt_or_the_own_segment():
    run, segment = run_and_segment(packing())
    assert run.tolist() == [0] * 7 + [1] * 4
    assert segment.tolist() == [0, 0, 1, 1, 1, 2, 2, 0, 1, 1, 1]


def test_segments_continue_the_positions_of_their_prompt():
    # two axes; run 1 at 0..4 and 10..14, run 2 at 5..8 and 25..28
    first = torch.stack([torch.arange(5), torch.arange(10, 15)])
    second = torch.stack([torch.arange(5, 9), torch.arange(25, 29)])
    positions = packed_positions(packing(), [first, second], completion_width=2)
    assert positions.shape == (2, 1, 11)
    assert positions[0, 0].tolist() == [0, 1, 2, 3, 4, 2, 3, 5, 6, 7, 8]
    assert positions[1, 0].tolist() == [10, 11, 12, 13, 14, 12, 13, 25, 26, 27, 28]


def test_a_prompt_of_one_token_has_no_prefix():
    layout = pack(torch.tensor([[1, 1, 1], [1, 1, 0]]), completion_width=2, runs=[2])
    assert layout.source.tolist() == [0, 1, 2, 3, 4]
    assert layout.runs[0].prefix == 0


def test_an_empty_completion_leaves_its_segment_of_one_token():
    layout = pack(torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]]), completion_width=2, runs=[2])
    # prefix of one token, then segments of 1 and 2 tokens
    assert layout.source.tolist() == [0, 1, 5, 6]
    assert not layout.runs[0].full


def test_the_mask_passes_as_a_prepared_one_and_computes_nothing():
    mask = PackedMask.of(packing())
    assert mask.shape == (1, 1, 11, 11)
    assert packing_of(mask).length == 11
    assert packing_of(mask.to("cpu")) is packing_of(mask)
    assert packing_of({"full_attention": None, "linear_attention": mask}) is packing_of(mask)
    assert packing_of({"full_attention": None}) is packing_of(None) is None
    with torch._C.DisableTorchFunctionSubclass():
        assert mask.untyped_storage().nbytes() == 1
    query = torch.zeros(1, 1, 11, 4)
    with pytest.raises(RuntimeError, match="does not follow its layout"):
        torch.nn.functional.scaled_dot_product_attention(query, query, query, attn_mask=mask)
    with pytest.raises(RuntimeError, match="group_forward='off'"):
        mask[:, :, :4]
