"""Accuracy of methods over seeds and rows, and paired differences from a baseline, with intervals; float64, numpy alone.

[`compare_methods`] takes (method, seed, row, correct) from anywhere.
"""

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np

CONFIDENCE, POWER = 0.95, 0.8
RESAMPLES = 2000
Values = Mapping[str, Mapping[Hashable, np.ndarray]]


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and rows with the ends of its 95 % interval.

    Args:
        error: its standard error. freedom: degrees of freedom of the error.
        low, high, error, freedom: None for fewer than two seeds or two rows, which show no spread.
    """

    mean: float
    low: float | None
    high: float | None
    error: float | None
    freedom: float | None
    seeds: int
    rows: int


@dataclass(frozen=True)
class MethodFigures:
    """A method in a study.

    Args:
        accuracy: over its seeds. difference: from the baseline over the seeds that both have; None without any.
        detectable: see [`detectable_difference`]; None without an interval of the difference.
        groups: {column: {label: the figures of the rows with this label}}.
    """

    accuracy: Interval
    difference: Interval | None
    detectable: float | None
    groups: Mapping[str, Mapping[str, "MethodFigures"]] = field(default_factory=dict)


def compare_methods(
    outcomes: Iterable[tuple[str, Hashable, Hashable, float]],
    baseline: str,
    *,
    groups: Mapping[str, Mapping[Hashable, str]] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, MethodFigures]:
    """Compare methods that were trained with several seeds and evaluated on the same rows.

    Args:
        outcomes: (method, seed, row, correct) with correct in [0, 1]; NaN for a row that does not count, which is then left
            out for all methods.
        baseline: the method that the others are compared with, by seed and row.
        groups: {column: {row: label}}, for figures by label.
        resamples, seed: of the bootstrap.
    Returns: the figures by method, the baseline with a difference of None.
    Errors: ValueError for an unknown baseline, an outcome that is there twice, and seeds with different rows.
    """
    found: dict[str, dict[Hashable, dict[Hashable, float]]] = {}
    for method, number, row, correct in outcomes:
        of_seed = found.setdefault(method, {}).setdefault(number, {})
        if row in of_seed:
            raise ValueError(f"Method {method}, seed {number} has row {row} twice; one outcome for each row is wanted.")
        of_seed[row] = float(correct)
    if baseline not in found:
        raise ValueError(f"The baseline {baseline!r} has no outcomes; the methods are {', '.join(found)}.")
    rows = list(next(iter(found[baseline].values())))
    for method, of_method in found.items():
        for number, of_seed in of_method.items():
            if differing := set(rows) ^ set(of_seed):
                raise ValueError(
                    f"Method {method}, seed {number} was evaluated on other rows than {baseline} ({len(differing)} differ, such as "
                    f"{min(differing, key=str)}); the same rows for all are wanted."
                )
    values = {
        method: {number: np.array([of_seed[row] for row in rows]) for number, of_seed in of_method.items()}
        for method, of_method in found.items()
    }
    labels = {column: np.array([of_row[row] for row in rows]) for column, of_row in (groups or {}).items()}
    return compare_values(values, baseline, labels, resamples=resamples, seed=seed)


def compare_values(
    values: Values, baseline: str, labels: Mapping[str, np.ndarray], *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, MethodFigures]:
    """[`compare_methods`] for arrays: values {method: {seed: (R,)}} and labels {column: (R,)}."""
    counted = ~np.isnan([of_seed for of_method in values.values() for of_seed in of_method.values()]).any(axis=0)
    chosen = [("", "", counted)]
    chosen += [
        (column, str(label), counted & (of_rows == label))
        for column, of_rows in labels.items()
        for label in sorted(set(of_rows), key=str)
    ]
    found = {
        (column, label): _figures(values, baseline, mask, resamples, seed)
        for column, label, mask in chosen
        if mask.any()
    }
    table = {}
    for method in values:
        overall = found["", ""][method]
        groups: dict[str, dict[str, MethodFigures]] = {column: {} for column in labels}
        for (column, label), figures in found.items():
            if column:
                groups[column][label] = figures[method]
        table[method] = MethodFigures(overall.accuracy, overall.difference, overall.detectable, groups)
    return table


def interval(values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Mean of an array over seeds and rows, and its 95 % interval.

        mean -+ t(0.975, nu) s,   s^2 = max(a, b, v - 2 e)
        nu = max(s^4 / (a^2 / (S - 1) + b^2 / (R - 1) + e^2 / ((S - 1) (R - 1))), min(S, R) - 1)

    v: variance of the means of [`hierarchical_bootstrap`]; a = var_s(mean over rows) / S and b = var_r(mean over seeds) / R,
    unbiased variances; e: residual mean square / (S R), which is a part of a and of b, so that v has it three times. With few
    seeds that differ, nu is near S - 1 and the interval is wide.

    Args: values: (S,R), one row a seed; for a paired difference, the differences by seed and row.
    Source: Owen, "The pigeonhole bootstrap", 2007, for v; Satterthwaite, "An approximate distribution of estimates of variance
        components", 1946, for nu.
    """
    values = np.asarray(values, dtype=np.float64)
    seeds, rows = values.shape
    mean = float(values.mean())
    if min(seeds, rows) < 2:
        return Interval(mean, None, None, None, None, seeds, rows)
    of_seeds, of_rows = values.mean(1), values.mean(0)
    residual = values - of_seeds[:, None] - of_rows + mean
    degrees = np.array([seeds - 1, rows - 1, (seeds - 1) * (rows - 1)])
    parts = np.array([of_seeds.var(), of_rows.var(), (residual**2).mean()]) / degrees  # a, b and e
    drawn = hierarchical_bootstrap(values, np.random.default_rng(seed), resamples).var()
    variance = max(parts[0], parts[1], drawn - 2 * parts[2])
    noise = (parts**2 / degrees).sum()
    freedom = float(max(variance**2 / noise if noise else 0, min(seeds, rows) - 1))
    error = math.sqrt(variance)
    reach = t_quantile((1 + CONFIDENCE) / 2, freedom) * error
    return Interval(mean, mean - reach, mean + reach, error, freedom, seeds, rows)


def hierarchical_bootstrap(values: np.ndarray, generator: np.random.Generator, resamples: int) -> np.ndarray:
    """Means (resamples,) of an array (S,R) over S - 1 seeds and R - 1 rows, each drawn with replacement.

    Rows are crossed with seeds: a draw takes the same rows for all its seeds, since the rows are the same for every seed.
    With one draw less than there are, the variance over draws is a + b + e of [`interval`]; S and R draws would make the
    variance too small by the factors (S - 1) / S and (R - 1) / R.

    Args: values: S >= 2 seeds, R >= 2 rows.
    Source: Owen, "The pigeonhole bootstrap", 2007, for crossed draws; Rao and Wu, "Resampling inference with complex survey
        data", 1988, for one draw less.
    """
    seeds, rows = values.shape
    counts = generator.multinomial(seeds - 1, np.full(seeds, 1 / seeds), size=resamples)
    of_rows = counts @ values / (seeds - 1)
    drawn = generator.integers(rows, size=(resamples, rows - 1))
    return np.take_along_axis(of_rows, drawn, axis=1).mean(1)


def detectable_difference(error: float, freedom: float, power: float = POWER) -> float:
    """Return the smallest true difference that a study finds with a probability of `power`, at a level of 5 %, two-sided.

        delta = (t(0.975, nu) + t(power, nu)) * error

    Args: error: standard error of the paired difference. freedom: nu.
    Source: Bloom, "Minimum detectable effects", 1995.
    """
    return (t_quantile((1 + CONFIDENCE) / 2, freedom) + t_quantile(power, freedom)) * error


def t_quantile(probability: float, freedom: float) -> float:
    """Return the quantile of Student's t for any number of degrees of freedom from 1; probability in [0.5, 1)."""
    if freedom > 1e6:
        return NormalDist().inv_cdf(probability)
    low, high = 0.0, 1.0
    while _t_cdf(high, freedom) < probability:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _t_cdf(value: float, freedom: float) -> float:
    """1/2 + Gamma((nu + 1) / 2) / (sqrt(pi) Gamma(nu / 2)) * integral of cos^(nu - 1) from 0 to atan(t / sqrt(nu))."""
    angles, weights = _GAUSS
    end = math.atan(value / math.sqrt(freedom))
    pieces = 8
    places = (np.arange(pieces)[:, None] + (angles + 1) / 2) * end / pieces
    area = float((np.cos(places) ** (freedom - 1) * weights).sum()) * end / (2 * pieces)
    return 0.5 + math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi) * area


_GAUSS = np.polynomial.legendre.leggauss(20)


def _figures(values: Values, baseline: str, rows: np.ndarray, resamples: int, seed: int) -> dict[str, MethodFigures]:
    """The figures of all methods over the rows of a mask."""
    found = {}
    for method, of_method in values.items():
        accuracy = interval(np.stack(list(of_method.values()))[:, rows], resamples=resamples, seed=seed)
        shared = [number for number in of_method if number in values.get(baseline, {})]
        difference = detectable = None
        if method != baseline and shared:
            change = np.stack([of_method[number] - values[baseline][number] for number in shared])
            difference = interval(change[:, rows], resamples=resamples, seed=seed)
            if difference.error is not None:
                detectable = detectable_difference(difference.error, difference.freedom)
        found[method] = MethodFigures(accuracy, difference, detectable)
    return found
