"""Errors name the value found, the value wanted and what to change."""

import pytest
import torch

from trl_perception.objectives.checks import (
    check_choice,
    check_count,
    check_finite,
    check_float,
    check_mask,
    check_range,
    working_dtype,
)


def test_rank_error_names_axes():
    with pytest.raises(ValueError, match=r"rows has shape \(2, 3\); wanted 3 axes, \(B,T,S\)"):
        check_float("rows", torch.zeros(2, 3), "BTS")


def test_shape_error_names_both_shapes():
    with pytest.raises(ValueError, match=r"mask has shape \(2, 3\); wanted \(B,T\) = \(2, 4\)"):
        check_mask("mask", torch.ones(2, 3, dtype=torch.bool), "BT", like=(2, 4))


def test_integer_scores_are_refused():
    with pytest.raises(ValueError, match=r"scores has dtype torch.int64; wanted a floating dtype"):
        check_float("scores", torch.zeros(2, 3, dtype=torch.long), "BT")


@pytest.mark.parametrize("dtype", [torch.bool, torch.long, torch.int32, torch.float32])
def test_masks_of_zeros_and_ones_are_read_in_any_dtype(dtype):
    mask = check_mask("mask", torch.tensor([[1, 0]]).to(dtype), "BT")
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[True, False]]


@pytest.mark.parametrize("entry", [2.0, 0.5, float("nan")])
def test_mask_with_other_values_is_refused(entry):
    with pytest.raises(ValueError, match="other than 0 and 1"):
        check_mask("mask", torch.tensor([[1.0, entry]]), "BT")


def test_finite_names_the_first_wrong_entry_and_overlooks_padding():
    scores = torch.tensor([[float("nan"), 1.0], [2.0, float("inf")]])
    check_finite("scores", scores, torch.tensor([[False, True], [True, False]]))
    with pytest.raises(ValueError, match=r"scores\[1, 1\] is inf"):
        check_finite("scores", scores, torch.tensor([[False, True], [True, True]]))


def test_choice_range_and_count():
    check_choice("strategy", "soft", ("hard", "soft"))
    with pytest.raises(ValueError, match="strategy is 'sfot'; wanted one of 'hard', 'soft'"):
        check_choice("strategy", "sfot", ("hard", "soft"))
    check_range("ratio", 1.0, 0.0, 1.0)
    with pytest.raises(ValueError, match=r"ratio is 1.5; wanted a number in \[0.0, 1.0\]"):
        check_range("ratio", 1.5, 0.0, 1.0)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="wanted a finite number >= 0"):
            check_range("weight", wrong, 0.0)
    check_count("top_tokens", 1)
    for wrong in (0, -3, 2.5):
        with pytest.raises(ValueError, match="wanted a whole number >= 1"):
            check_count("top_tokens", wrong)


def test_working_dtype_keeps_float64_and_widens_the_rest():
    assert working_dtype(torch.zeros(1, dtype=torch.bfloat16)) == torch.float32
    assert working_dtype(torch.zeros(1, dtype=torch.float16), torch.zeros(1)) == torch.float32
    assert working_dtype(torch.zeros(1), torch.zeros(1, dtype=torch.float64)) == torch.float64
