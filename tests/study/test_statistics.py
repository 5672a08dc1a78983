"""Intervals over seeds and rows: hand-worked, against a reference with loops, and their coverage in simulations."""

import itertools
import math

import numpy as np
import pytest

from trl_perception.study import compare_methods, detectable_difference, hierarchical_bootstrap, interval
from trl_perception.study.statistics import t_quantile

# Student's t from printed tables: (probability, degrees of freedom, quantile).
TABLE = [(0.975, 1, 12.7062), (0.975, 2, 4.30265), (0.975, 7, 2.36462), (0.8, 7, 0.89603), (0.975, 30, 2.04227)]


@pytest.mark.parametrize(("probability", "freedom", "wanted"), [*TABLE, (0.975, 1e5, 1.95996), (0.8, 1e7, 0.84162)])
def test_quantiles_of_t_are_those_of_printed_tables(probability, freedom, wanted):
    assert t_quantile(probability, freedom) == pytest.approx(wanted, rel=2e-5)


def test_an_interval_by_hand():
    # One seed and one row are drawn of [[1, 0], [0, 0]]: 1 with a probability of 1/4, so v = 1/4 - 1/16 = 3/16. Means over rows
    # 1/2 and 0 have the variance 1/8, so a = 1/16, and b likewise. Residuals are -+1/4, their sum of squares 1/4 with one degree
    # of freedom, e = 1/16. s^2 = 3/16 - 2/16, s = 1/4; nu = 1/3, at least 1; t(0.975, 1) = 12.7062.
    found = interval([[1.0, 0.0], [0.0, 0.0]], resamples=200_000)
    assert (found.mean, found.seeds, found.rows, found.freedom) == (0.25, 2, 2, 1)
    assert found.error == pytest.approx(0.25, rel=0.02)
    assert found.high == pytest.approx(0.25 + 12.7062 * found.error, rel=1e-5)
    assert found.low == pytest.approx(0.25 - 12.7062 * found.error, rel=1e-5)


def by_loops(values):
    """The variance over all draws of S - 1 seeds and R - 1 rows, one by one."""
    seeds, rows = len(values), len(values[0])
    means = []
    for drawn in itertools.product(range(seeds), repeat=seeds - 1):
        for of_rows in itertools.product(range(rows), repeat=rows - 1):
            total = sum(values[s][r] for s in drawn for r in of_rows)
            means.append(total / (len(drawn) * len(of_rows)))
    mean = sum(means) / len(means)
    return sum((value - mean) ** 2 for value in means) / len(means)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3), (2, 5)])
def test_the_bootstrap_has_the_variance_of_all_draws(shape):
    values = np.random.default_rng(0).normal(size=shape) + np.random.default_rng(1).normal(size=(shape[0], 1))
    wanted = by_loops(values.tolist())
    means = hierarchical_bootstrap(values, np.random.default_rng(2), 200_000)
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)
    assert means.var() == pytest.approx(wanted, rel=0.02)
    # The formula of the docstring, with the residual variance of two ways.
    residual = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    mean_square = (residual**2).sum() / ((shape[0] - 1) * (shape[1] - 1))
    parts = [values.mean(1).var(ddof=1) / shape[0], values.mean(0).var(ddof=1) / shape[1], mean_square / values.size]
    assert sum(parts) == pytest.approx(wanted, rel=1e-9)


def test_the_degrees_of_freedom_follow_the_larger_part():
    seeds, rows = np.arange(8.0)[:, None], np.arange(50.0)
    assert interval(seeds + 0 * rows).freedom == pytest.approx(7)
    assert interval(0 * seeds + rows).freedom == pytest.approx(49)


def test_one_seed_or_one_row_has_no_interval():
    for values in ([[1.0, 0.0]], [[1.0], [0.0]]):
        found = interval(values)
        assert (found.mean, found.low, found.high, found.error) == (0.5, None, None, None)


def test_equal_methods_differ_by_nothing():
    found = interval(np.zeros((4, 6)))
    assert (found.low, found.mean, found.high) == (0, 0, 0)


def test_the_detectable_difference_by_hand():
    assert detectable_difference(0.02, 7) == pytest.approx((2.36462 + 0.89603) * 0.02, rel=1e-5)


def outcomes(**methods):
    """(method, seed, row, correct) of {method: {seed: {row: correct}}}."""
    return [(m, s, r, c) for m, seeds in methods.items() for s, rows in seeds.items() for r, c in rows.items()]


def test_methods_are_paired_by_seed_and_row():
    ours = {1: {"a": 1, "b": 1, "c": 0}, 2: {"c": 1, "b": 0, "a": 1}, 3: {"a": 0, "b": 0, "c": 0}}
    base = {2: {"a": 0, "b": 0, "c": 1}, 1: {"a": 1, "b": 0, "c": 0}}
    found = compare_methods(outcomes(ours=ours, base=base), "base", groups={"kind": {"a": "x", "b": "y", "c": "x"}})
    assert found["base"].difference is None
    assert found["ours"].accuracy.mean == pytest.approx(4 / 9)
    # Seeds 1 and 2 are shared: 2 + 2 right against 1 + 1, of six.
    assert (found["ours"].difference.mean, found["ours"].difference.seeds) == (pytest.approx(1 / 3), 2)
    # Row by row the changes are a: 0, 1; b: 1, 0; c: 0, 0 by seed: of x (a, c) 1 of 4, of y 1 of 2.
    of_kind = found["ours"].groups["kind"]
    assert {label: figures.difference.mean for label, figures in of_kind.items()} == {"x": 0.25, "y": 0.5}
    change = [[0, 1, 0], [1, 0, 0]]
    assert found["ours"].difference == interval(change)
    assert found["ours"].detectable == detectable_difference(
        found["ours"].difference.error, found["ours"].difference.freedom
    )


def test_pairing_removes_what_is_common_to_both():
    generator = np.random.default_rng(0)
    hard, luck = generator.random(300), generator.normal(0, 0.1, (6, 1))
    base = (generator.random((6, 300)) < np.clip(hard + luck, 0, 1)).astype(float)
    ours = np.maximum(base, generator.random((6, 300)) < 0.05)
    paired = interval(ours - base)
    apart = math.hypot(interval(ours).error, interval(base).error)
    assert paired.error < apart / 4


def test_a_row_without_a_value_is_left_out_for_all():
    found = compare_methods(outcomes(base={1: {"a": 1, "b": math.nan}}, ours={1: {"a": 0, "b": 1}}), "base")
    assert (found["ours"].accuracy.mean, found["ours"].accuracy.rows) == (0, 1)


@pytest.mark.parametrize(
    ("methods", "baseline", "said"),
    [
        ({"a": {1: {"x": 1}}}, "b", "The baseline 'b' has no outcomes; the methods are a."),
        ({"a": {1: {"x": 1}, 2: {"y": 1}}}, "a", "Method a, seed 2 was evaluated on other rows than a"),
    ],
)
def test_outcomes_that_cannot_be_compared_are_refused(methods, baseline, said):
    with pytest.raises(ValueError, match=said):
        compare_methods(outcomes(**methods), baseline)
    with pytest.raises(ValueError, match="seed 1 has row x twice"):
        compare_methods([("a", 1, "x", 1), ("a", 1, "x", 1)], "a")


def simulated(generator, seeds, rows, of_seed, effect):
    """Two methods' answers, 0 and 1: rows differ in difficulty, seeds of each method in luck; (S,R) differences."""
    hard = generator.normal(0.5, 0.2, rows)
    answers = [
        generator.random((seeds, rows)) < np.clip(hard + generator.normal(0, of_seed, (seeds, 1)) + more, 0, 1)
        for more in (0.0, effect)
    ]
    return answers[1].astype(float) - answers[0]


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "rows", "of_seed"), [(8, 400, 0.05), (8, 100, 0.0), (4, 400, 0.05), (16, 50, 0.02)])
def test_intervals_cover_the_truth_as_often_as_they_say(seeds, rows, of_seed):
    generator = np.random.default_rng(3)
    trials, covered = 400, 0
    for _ in range(trials):
        found = interval(simulated(generator, seeds, rows, of_seed, 0.0), resamples=400)
        covered += found.low <= 0 <= found.high
    # The standard deviation of the share is 1.1 %. Where only the residual varies, nu is small and the interval wide.
    assert 0.92 <= covered / trials <= 0.993


@pytest.mark.slow
def test_the_detectable_difference_is_found_in_four_of_five_studies():
    generator = np.random.default_rng(4)
    drawn = [interval(simulated(generator, 8, 400, 0.05, 0.0), resamples=400) for _ in range(100)]
    effect = float(np.mean([detectable_difference(found.error, found.freedom) for found in drawn]))
    found = [interval(simulated(generator, 8, 400, 0.05, effect), resamples=400) for _ in range(400)]
    assert 0.74 <= np.mean([one.low > 0 for one in found]) <= 0.86
