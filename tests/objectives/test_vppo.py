"""VPPO: token weights, sequence factors and the entropy penalty against hand numbers and plain loops."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_perception.objectives import entropy_penalty, mean_dependency, vppo_sequence_weights, vppo_token_weights

NAN = math.nan
DEPENDENCY = torch.tensor([[0.1, 3.0, 0.2, 3.0, 0.5], [2.0, 1.0, NAN, NAN, 99.0]])
MASK = torch.tensor([[True] * 5, [True, True, False, False, False]])


def test_token_weights_by_hand():
    # ceil(.4 * 5) = 2 and ceil(.4 * 2) = 1 tokens
    found = vppo_token_weights(DEPENDENCY, MASK)
    assert found.weights.tolist() == [[0.0, 1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]]
    assert found.weights.dtype == torch.float32
    assert found.metrics["vppo/kept_frac"].item() == pytest.approx(3 / 7)
    # (.1 + 3 + .2 + 3 + .5 + 2 + 1) / 7 = 1.4
    assert found.metrics["vppo/dependency_mean"].item() == pytest.approx(1.4)
    # one of the two equal ones: the earlier
    assert vppo_token_weights(DEPENDENCY, MASK, keep_ratio=0.2).weights[0].tolist() == [0.0, 1.0, 0.0, 0.0, 0.0]
    assert torch.equal(vppo_token_weights(DEPENDENCY, MASK, keep_ratio=1.0).weights, MASK.float())  # GRPO


def test_sequence_weights_by_hand():
    # s = 6.8 / 5 = 1.36 and 3 / 2 = 1.5, and a completion without a token
    scores = mean_dependency(torch.cat([DEPENDENCY, DEPENDENCY[:1]]), torch.cat([MASK, ~MASK[:1]]))
    torch.testing.assert_close(scores, torch.tensor([1.36, 1.5, NAN]), equal_nan=True)
    # n = 0, 1: mean .5; f = .9 + 0 and .9 + .1 / .5 = 1.1
    torch.testing.assert_close(vppo_sequence_weights(scores), torch.tensor([0.9, 1.1, 1.0]))
    # s = 1, 2, 5: n = 0, .25, 1, mean 5/12; t_max = .9 + .1 * 12/5 = 1.14: f = .9, .9 + .25 * .24 = .96, 1.14; mean 1
    torch.testing.assert_close(vppo_sequence_weights(torch.tensor([1.0, 2.0, 5.0])), torch.tensor([0.9, 0.96, 1.14]))
    # floor .5: t_max = .5 + .5 * 12/5 = 1.7: .5, .5 + .25 * 1.2 = .8, 1.7
    found = vppo_sequence_weights(torch.tensor([1.0, 2.0, 5.0]), floor=0.5)
    torch.testing.assert_close(found, torch.tensor([0.5, 0.8, 1.7]))


def test_completions_that_depend_alike_have_factor_one():
    for scores in ([2.0, 2.0], [2.0], [NAN, 3.0], [NAN], []):
        assert vppo_sequence_weights(torch.tensor(scores)).tolist() == [1.0] * len(scores)


@settings(max_examples=40, deadline=None)
@given(scores=st.lists(st.one_of(st.floats(0, 10), st.just(NAN)), min_size=1, max_size=9), floor=st.floats(0, 1))
def test_sequence_weights_are_the_loop_and_have_mean_one(scores, floor):
    found = vppo_sequence_weights(torch.tensor(scores, dtype=torch.float64), floor=floor).tolist()
    known = [score for score in scores if not math.isnan(score)]
    low, high = min(known, default=0), max(known, default=0)
    shares = [(score - low) / (high - low) if high > low else 0.0 for score in known]
    for score, factor in zip(scores, found, strict=True):
        if math.isnan(score) or high == low:
            assert factor == 1.0
        else:
            most = floor + (1 - floor) / (sum(shares) / len(shares))
            assert factor == pytest.approx(floor + (score - low) / (high - low) * (most - floor), rel=1e-5, abs=1e-6)
            assert factor >= floor - 1e-6
    compared = [factor for score, factor in zip(scores, found, strict=True) if not math.isnan(score)]
    assert sum(compared) == pytest.approx(len(compared), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.lists(st.floats(0, 10), max_size=6), min_size=1, max_size=4), ratio=st.floats(0, 1))
def test_token_weights_are_the_loop(rows, ratio):
    width = max(map(len, rows)) + 1
    dependency = torch.tensor([[*row, *[NAN] * (width - len(row))] for row in rows], dtype=torch.float64)
    mask = torch.tensor([[t < len(row) for t in range(width)] for row in rows])
    found = vppo_token_weights(dependency, mask, keep_ratio=ratio).weights
    for row, weights in zip(rows, found.tolist(), strict=True):
        count = math.ceil(round(ratio * len(row), 6)) if ratio else 0
        kept = sorted(range(len(row)), key=lambda t, row=row: -row[t])[: max(count, int(ratio > 0))]
        assert weights == [float(t in kept) for t in range(width)]


def test_entropy_penalty_by_hand():
    logps = torch.tensor([[-1.0, -3.0, NAN]], requires_grad=True)
    # H = (1 + 3) / 2 = 2; .06 * 2 = .12; over N = 4: .06
    found = entropy_penalty(logps, torch.tensor([[1, 1, 0]]))
    assert found.loss.item() == pytest.approx(0.12)
    assert found.metrics["vppo/entropy"].item() == pytest.approx(2.0)
    assert entropy_penalty(logps, torch.tensor([[1, 1, 0]]), num_tokens=4).loss.item() == pytest.approx(0.06)
    gradient = torch.autograd.grad(found.loss, logps)[0]
    torch.testing.assert_close(gradient, torch.tensor([[-0.03, -0.03, 0.0]]))  # descent makes the tokens likelier


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: vppo_token_weights(DEPENDENCY, MASK, keep_ratio=1.5), "keep_ratio is 1.5"),
        (lambda: vppo_token_weights(DEPENDENCY, MASK[:1]), r"completion_mask has shape \(1, 5\)"),
        (lambda: vppo_token_weights(DEPENDENCY, torch.ones(2, 5)), r"dependency\[1, 2\] is nan"),
        (lambda: vppo_sequence_weights(torch.ones(2), floor=2.0), "floor is 2.0"),
        (lambda: vppo_sequence_weights(torch.ones(2, 2)), "scores has shape"),
        (lambda: vppo_sequence_weights(torch.tensor([math.inf])), r"scores\[0\] is inf"),
        (lambda: mean_dependency(torch.ones(2), torch.ones(2)), "dependency has shape"),
        (lambda: entropy_penalty(torch.zeros(1, 1), torch.ones(1, 1), weight=-1.0), "weight is -1.0"),
        (lambda: entropy_penalty(torch.zeros(1, 1), torch.ones(1, 1), num_tokens=-1.0), "num_tokens is -1.0"),
    ],
)
def test_bad_arguments_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
