"""pass@k and bootstrap intervals against counts by hand."""

import pytest
import torch

from trl_perception.evaluation.statistics import bootstrap_interval, estimate, pass_at_k


def interval(values, resamples=20_000, seed=0, **kwargs):
    generator = torch.Generator().manual_seed(seed)
    return bootstrap_interval(torch.tensor(values, dtype=torch.float64), generator, resamples=resamples, **kwargs)


@pytest.mark.parametrize(
    ("samples", "right", "k", "expected"),
    [
        (1, 1, 1, 1.0),
        (8, 0, 8, 0.0),
        # k = 1 is the share of right ones
        (8, 3, 1, 3 / 8),
        # of 4 with 1 right, C(3, 2) = 3 of the C(4, 2) = 6 pairs have none: 1 - 3/6
        (4, 1, 2, 0.5),
        # of 5 with 2 right, C(3, 2) = 3 of C(5, 2) = 10 pairs have none: 1 - 3/10
        (5, 2, 2, 0.7),
        # of 5 with 2 right, C(3, 3) = 1 of C(5, 3) = 10 triples has none: 1 - 1/10
        (5, 2, 3, 0.9),
        # three wrong ones cannot fill four places
        (5, 2, 4, 1.0),
    ],
)
def test_pass_at_k_counts_draws_without_a_right_one(samples, right, k, expected):
    assert pass_at_k(samples, right, k) == pytest.approx(expected, abs=1e-12)


def test_pass_at_k_is_the_chance_that_drawing_finds_a_right_one():
    drawn = torch.stack([torch.randperm(6, generator=torch.Generator().manual_seed(s))[:3] for s in range(4000)])
    found = (drawn < 2).any(1).double().mean().item()  # two of six are right
    # 1 - C(4, 3) / C(6, 3) = 1 - 4/20; three standard errors are 3 * sqrt(.8 * .2 / 4000) = .019
    assert pass_at_k(6, 2, 3) == pytest.approx(0.8)
    assert found == pytest.approx(0.8, abs=0.019)


@pytest.mark.parametrize(("samples", "right", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0)])
def test_pass_at_k_refuses_what_is_not_defined(samples, right, k):
    with pytest.raises(ValueError, match=rf"pass@{k} of {samples} samples with {right} right"):
        pass_at_k(samples, right, k)


def test_the_interval_of_equal_values_is_a_point():
    assert interval([0.25] * 7) == (0.25, 0.25)


def test_the_interval_of_a_few_rows_follows_the_binomial():
    # Means of 4 rows drawn from (0, 0, 0, 1) are k/4 with k ~ Bin(4, 1/4):
    # P(k=0) = .3164 > .025, so the low end is 0; P(k=4) = .0039 and P(k>=3) = .0508, so the high end is 3/4.
    assert interval([0.0, 0.0, 0.0, 1.0]) == (0.0, 0.75)
    # At 90 % the tail is .05 < .0508: still 3/4. At 80 % it is .1, and P(k>=2) = .2617: 2/4.
    assert interval([0.0, 0.0, 0.0, 1.0], confidence=0.8) == (0.0, 0.5)
    # The other way round: k ones of (1, 1, 1, 0) missing.
    assert interval([1.0, 1.0, 1.0, 0.0]) == (0.25, 1.0)


def test_the_interval_of_many_rows_is_the_normal_one():
    # 400 rows, half of them 1: the mean's standard deviation is .5 / sqrt(400) = .025; 1.96 of them are .049.
    low, high = interval([0.0, 1.0] * 200)
    assert low == pytest.approx(0.451, abs=0.004)
    assert high == pytest.approx(0.549, abs=0.004)


def test_draws_in_several_portions_make_one_sample(monkeypatch):
    monkeypatch.setattr("trl_perception.evaluation.statistics.DRAWS_AT_ONCE", 1000)  # ten resamples of 100 rows
    low, high = interval([0.0, 1.0] * 50, resamples=5003)
    # .5 / sqrt(100) * 1.96 = .098
    assert low == pytest.approx(0.402, abs=0.011)
    assert high == pytest.approx(0.598, abs=0.011)


def test_an_estimate_reads_only_rows_that_have_a_value():
    nan = float("nan")
    found = estimate(torch.tensor([1.0, nan, 0.0, nan, 1.0]), resamples=500)
    alone = estimate(torch.tensor([1.0, 0.0, 1.0]), resamples=500)
    assert found == alone
    assert found.mean == pytest.approx(2 / 3)
    assert found.rows == 3
    assert estimate(torch.tensor([nan, nan]), resamples=500) is None
    single = estimate(torch.tensor([nan, 0.5]), resamples=500)
    assert (single.mean, single.low, single.high, single.rows) == (0.5, None, None, 1)


def test_the_seed_decides_the_interval():
    values = torch.rand(50, generator=torch.Generator().manual_seed(1))
    assert estimate(values, resamples=200, seed=3) == estimate(values, resamples=200, seed=3)
    assert estimate(values, resamples=200, seed=3) != estimate(values, resamples=200, seed=4)
