"""PAPO: the penalty against hand numbers, a plain loop and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_perception.objectives import papo_penalty

NAN = math.nan
LOGPS = torch.tensor([[-1.0, -2.0, NAN], [-0.5, 99.0, 99.0]])
MASKED = torch.tensor([[-2.0, -1.0, 99.0], [-0.5, NAN, 99.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_penalty_by_hand():
    # d = l' - l = -1, 1, 0: k3 = e^-1 - 1 + 1 = .367879; e - 1 - 1 = .718282; 0. Mean (.367879 + .718282) / 3 = .362054
    # H = (1 + 2 + .5) / 3 = 1.166667; H' = (2 + 1 + .5) / 3 = 1.166667
    # loss = -.01 * .362054 + .03 * 1.166667 + .03 * 1.166667 = .066379
    found = papo_penalty(LOGPS, MASKED, MASK)
    assert found.loss.item() == pytest.approx(0.066379, abs=1e-6)
    metrics = {name: value.item() for name, value in found.metrics.items()}
    assert metrics["papo/kl"] == pytest.approx(0.362054, abs=1e-6)
    assert metrics["papo/entropy"] == metrics["papo/entropy_masked"] == pytest.approx(3.5 / 3, abs=1e-6)
    # N = 6 instead of 3 halves it
    assert papo_penalty(LOGPS, MASKED, MASK, num_tokens=6).loss.item() == pytest.approx(0.066379 / 2, abs=1e-6)


def test_gradient_by_hand():
    logps = LOGPS.clone().requires_grad_()
    masked = MASKED.clone().requires_grad_()
    papo_penalty(logps, masked, MASK, weight=0.3, entropy_weight=0.6, masked_entropy_weight=0.9).loss.backward()
    # dk3/dl = 1 - e^d, and dk3/dl' = e^d - 1:  d = -1: .632121; d = 1: -1.718282; d = 0: 0
    # dloss/dl = (-.3 dk3/dl - .6) / 3;  dloss/dl' = (-.3 dk3/dl' - .9) / 3
    expected = torch.tensor([[-0.263212, -0.028172, 0.0], [-0.2, 0.0, 0.0]])
    torch.testing.assert_close(logps.grad, expected, atol=1e-6, rtol=0)
    expected = torch.tensor([[-0.236788, -0.471828, 0.0], [-0.3, 0.0, 0.0]])
    torch.testing.assert_close(masked.grad, expected, atol=1e-6, rtol=0)


def test_log_ratios_are_clamped_to_ten_nats():
    # d = 30 -> 10: e^10 - 11; no gradient beyond the clamp but the entropy's
    logps = torch.tensor([[-31.0]], dtype=torch.float64, requires_grad=True)
    masked = torch.tensor([[-1.0]], dtype=torch.float64)
    found = papo_penalty(logps, masked, torch.ones(1, 1), weight=1.0, entropy_weight=0.0, masked_entropy_weight=0.0)
    assert found.loss.item() == pytest.approx(-(math.exp(10) - 11))
    assert torch.autograd.grad(found.loss, logps)[0].item() == 0.0


def test_a_masked_log_prob_without_gradient_gets_none():
    """The release's: the weight of its entropy then changes the value of the loss alone."""
    logps = LOGPS.clone().requires_grad_()
    gradients = [
        torch.autograd.grad(papo_penalty(logps, MASKED, MASK, masked_entropy_weight=weight).loss, logps)[0]
        for weight in (0.0, 5.0)
    ]
    assert torch.equal(*gradients)


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.lists(st.tuples(st.floats(-9, 0), st.floats(-9, 0)), max_size=4), min_size=1, max_size=3),
    weights=st.tuples(*[st.floats(0, 2)] * 3),
    poison=st.sampled_from([NAN, math.inf, 99.0]),
)
def test_it_is_the_loop_whatever_padding_holds(rows, weights, poison):
    width = max(map(len, rows)) + 1
    pairs = torch.tensor([[*row, *[(poison, poison)] * (width - len(row))] for row in rows], dtype=torch.float64)
    mask = torch.tensor([[t < len(row) for t in range(width)] for row in rows])
    logps = pairs[..., 0].clone().requires_grad_()
    loss = papo_penalty(
        logps, pairs[..., 1], mask, weight=weights[0], entropy_weight=weights[1], masked_entropy_weight=weights[2]
    ).loss
    count, total = max(1, sum(map(len, rows))), 0.0
    for row in rows:
        for shown, masked in row:
            d = min(10.0, max(-10.0, masked - shown))
            total += -weights[0] * (math.exp(d) - d - 1) - weights[1] * shown - weights[2] * masked
    assert loss.item() == pytest.approx(total / count, rel=1e-9, abs=1e-9)
    gradient = torch.autograd.grad(loss, logps)[0]
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()


def test_weights_of_zero_are_grpo():
    logps = LOGPS.clone().requires_grad_()
    loss = papo_penalty(logps, MASKED, MASK, weight=0.0, entropy_weight=0.0, masked_entropy_weight=0.0).loss
    assert loss.item() == 0.0
    assert (torch.autograd.grad(loss, logps)[0] == 0).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight": -1.0}, "weight is -1.0"),
        ({"entropy_weight": -1.0}, "entropy_weight is -1.0"),
        ({"masked_entropy_weight": math.inf}, "masked_entropy_weight is inf"),
        ({"num_tokens": 0.0}, "num_tokens is 0.0"),
        ({"masked_logps": MASKED[:, :2]}, r"masked_logps has shape \(2, 2\)"),
        ({"completion_mask": torch.ones(2, 3)}, r"logps\[0, 2\] is nan"),
    ],
)
def test_bad_arguments_are_refused(change, words):
    arguments = {"logps": LOGPS, "masked_logps": MASKED, "completion_mask": MASK, **change}
    with pytest.raises(ValueError, match=words):
        papo_penalty(**arguments)
