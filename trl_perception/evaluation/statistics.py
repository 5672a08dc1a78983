"""Statistics: pass@k, and means with bootstrap intervals over rows."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

CONFIDENCE = 0.95
DRAWS_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class Estimate:
    """A mean over `rows` rows with the ends of its 95 % interval; both are None for fewer than two rows."""

    mean: float
    low: float | None
    high: float | None
    rows: int


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Probability that at least one of k completions is right, drawn without replacement from the samples of a row.

    pass@k = 1 - C(n - c, k) / C(n, k)

    Args: samples: n completions sampled; right: c of them are right; k: 1 to n.
    Errors: ValueError for a k or a count out of its bounds.
    Source: arXiv:2107.03374, equation 1.
    """
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(
            f"pass@{k} of {samples} samples with {right} right is not defined; 0 <= right <= samples and "
            "1 <= k <= samples are wanted. Raise samples, or lower k."
        )
    return 1 - math.comb(samples - right, k) / math.comb(samples, k)


def bootstrap_interval(
    values: Tensor, generator: torch.Generator, *, resamples: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Percentile interval of a mean: the quantiles (1 -+ confidence) / 2 of the means of R rows drawn with replacement.

    Args:
        values: (R,) finite float, one a row, R > 0. For a paired difference, the differences row by row.
        generator: of the draws, on the CPU.
        resamples: means that are drawn.
    Source: Efron, "Bootstrap methods: another look at the jackknife", 1979, the percentile method.
    """
    values = values.double()
    rows, means = len(values), []
    for start in range(0, resamples, chunk := max(1, DRAWS_AT_ONCE // rows)):
        drawn = torch.randint(rows, (min(chunk, resamples - start), rows), generator=generator)
        means.append(values[drawn].mean(1))
    tail = (1 - confidence) / 2
    low, high = torch.quantile(torch.cat(means), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def estimate(values: Tensor, *, resamples: int, seed: int = 0) -> Estimate | None:
    """Return mean and interval of the rows that have a value.

    Args:
        values: (R,) float, NaN for rows without a value.
        seed: of the generator, so that equal values give equal intervals in every table.
    Returns: None if no row has a value.
    """
    values = values[~values.isnan()]
    if not len(values):
        return None
    mean = values.double().mean().item()
    if len(values) < 2:
        return Estimate(mean, None, None, len(values))
    low, high = bootstrap_interval(values, torch.Generator().manual_seed(seed), resamples=resamples)
    return Estimate(mean, low, high, len(values))
