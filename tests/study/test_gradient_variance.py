"""The noise of a gradient, by hand and on drawn gradients whose noise is known."""

import math

import pytest
import torch

from benchmarks.gradient_variance import as_markdown, compare, gradients, noise, products


def test_noise_by_hand():
    # (1, 0) and (3, 0): signal 1*3 = 3, mean square (1 + 9) / 2 = 5, variance 2, which is the sample variance; noise 2/3.
    batches = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert noise(products(batches, batches)) == pytest.approx(2 / 3)
    opposed = torch.tensor([[1.0, 0.0], [-3.0, 0.0]])
    assert math.isnan(noise(products(opposed, opposed)))


def test_a_scale_changes_nothing_and_more_noise_is_seen():
    # A mean of ones in 50 dimensions with deviation s: noise 50 s^2 / 50 = s^2.
    torch.manual_seed(0)
    quiet, loud = (1 + deviation * torch.randn(200, 50, dtype=torch.float64) for deviation in (1.0, 2.0))
    base = products(quiet, quiet)
    same = compare(products(7 * quiet, 7 * quiet), base, products(7 * quiet, quiet))
    assert same["over_baseline"] == pytest.approx(1) == pytest.approx(same["low"]) == pytest.approx(same["cosine"])
    found = compare(products(loud, loud), base, products(loud, quiet))
    assert found["low"] < 4 < found["high"]
    assert found["low"] > 2.5
    assert found["high"] < 6
    assert found["noise"] == pytest.approx(4, rel=0.2)
    assert found["cosine"] == pytest.approx(1, abs=0.1)
    result = {"machine": "one", "model": "tiny", "batches": 200, "methods": {"grpo": same, "loud": found}}
    assert as_markdown(result).count("\n") == 6


@pytest.mark.slow
def test_methods_differ_on_the_same_rollouts():
    """The policy does not move: a second run has the same batches, so that a method's gradient can be set beside GRPO's."""
    ours, theirs, of_pgpo = (gradients(method, "tiny", 2) for method in ("grpo", "grpo", "pgpo"))
    torch.testing.assert_close(ours, theirs)
    assert not torch.allclose(ours[0], ours[1])
    cosines = torch.cosine_similarity(ours, of_pgpo)
    assert (cosines > 0.1).all()
    assert (cosines < 0.999).all()
