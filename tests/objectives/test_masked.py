"""Masked sums, means, extremes, ranks and quantiles; padding is NaN throughout."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_perception.objectives.masked import (
    masked_mean,
    masked_min_max,
    masked_quantile,
    masked_sum,
    masked_top,
)

NAN = math.nan
VALUES = torch.tensor([[1.0, NAN, 4.0], [NAN, NAN, NAN]])
MASK = torch.tensor([[True, False, True], [False, False, False]])


def test_sum_and_mean_leave_padding_out():
    # row 0: 1 + 4 = 5, 5 / 2 = 2.5; row 1 is empty: 0; all: 5 over 2 entries
    assert masked_sum(VALUES, MASK, dim=-1).tolist() == [5.0, 0.0]
    assert masked_mean(VALUES, MASK, dim=-1).tolist() == [2.5, 0.0]
    assert masked_sum(VALUES, MASK).item() == 5.0
    assert masked_mean(VALUES, MASK).item() == 2.5


def test_mean_counts_a_broadcast_mask_once_for_each_entry():
    # mask (2,1) over values (2,2): (1 + 3) / 2 = 2
    values, mask = torch.tensor([[1.0, 3.0], [NAN, NAN]]), torch.tensor([[True], [False]])
    assert masked_mean(values, mask).item() == 2.0


def test_gradient_never_sees_padding_and_an_empty_mask_stays_in_the_graph():
    values = VALUES.clone().requires_grad_()
    masked_mean(values, MASK).backward()
    # d mean / d entry = 1 / 2 on the two valid entries
    assert values.grad.tolist() == [[0.5, 0.0, 0.5], [0.0, 0.0, 0.0]]
    values.grad = None
    masked_mean(values, torch.zeros_like(MASK)).backward()
    assert values.grad.abs().sum().item() == 0.0


def test_min_max():
    low, high = masked_min_max(VALUES, MASK)
    assert low.tolist() == [[1.0], [0.0]]
    assert high.tolist() == [[4.0], [0.0]]


def test_top_takes_the_earlier_of_a_tie_and_never_padding():
    scores = torch.tensor([[0.5, NAN, 0.7, 0.5, 0.1], [NAN, 0.2, NAN, NAN, NAN]])
    mask = ~scores.isnan()
    # two best of row 0: .7, then the earlier .5; row 1 has one entry only
    expected = [[True, False, True, False, False], [False, True, False, False, False]]
    assert masked_top(scores, mask, 2).tolist() == expected
    # counts a row: 3 of row 0, none of row 1
    expected = [[True, False, True, True, False], [False, False, False, False, False]]
    assert masked_top(scores, mask, torch.tensor([[3], [0]])).tolist() == expected


def test_quantile_between_neighbours():
    values = torch.tensor([[3.0, NAN, 1.0, 2.0], [NAN, 7.0, NAN, NAN], [NAN, NAN, NAN, NAN]])
    # sorted 1, 2, 3; position 0.25 * 2 = 0.5: between 1 and 2; a single entry is every quantile; nothing: 0
    assert masked_quantile(values, ~values.isnan(), 0.25).tolist() == [[1.5], [7.0], [0.0]]


@pytest.mark.parametrize("count", range(2, 60))
def test_quantile_at_an_entry_is_that_entry(count):
    # with r = 0.1 .. 0.9 and 10 k + 1 entries the position is whole; float noise must not lift it above the entry
    values = torch.rand(1, 10 * count + 1, generator=torch.Generator().manual_seed(count))
    ordered = values.sort().values[0]
    for tenth in range(11):
        found = masked_quantile(values, torch.ones_like(values, dtype=torch.bool), 1 - (1 - tenth / 10))
        assert found.item() == ordered[tenth * count].item()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), quantile=st.floats(0, 1))
def test_quantile_agrees_with_torch(seed, quantile):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, 9, generator=generator) < 0.7
    mask[:, 0] = True
    found = masked_quantile(torch.where(mask, values, NAN), mask, quantile)
    for row in range(3):
        expected = torch.quantile(values[row][mask[row]], quantile)
        assert abs(found[row].item() - expected.item()) < 1e-4
