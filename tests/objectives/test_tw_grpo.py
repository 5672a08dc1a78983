"""TW-GRPO: token weights by hand and against a plain loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_perception.objectives import tw_token_weights


def at(log_probs):
    return lambda g_index, t_index: log_probs[g_index, t_index]


# Two completions over two words. Position 0: equal. Position 1: log p = (0, -2) and (-2, 0), not normalised, for easy numbers.
# Position 2: (0, -1) and (-1, 0). Position 3: the first alone.
LOG_PROBS = torch.tensor(
    [[[-1.0, -1.0], [0.0, -2.0], [0.0, -1.0], [-5.0, 0.0]], [[-1.0, -1.0], [-2.0, 0.0], [-1.0, 0.0], [math.nan] * 2]]
)
MASK = torch.tensor([[True] * 4, [True, True, True, False]])


def test_weights_by_hand():
    # t = 0: m = log p: D = 0
    # t = 1: m = (-1,-1); c = -1, 1 for the first, 1, -1 for the second: e^-1 + 1 - 1 + e^1 - 1 - 1 = 1.086161 each
    # t = 2: m = (-.5,-.5); c = -+.5: e^-.5 + .5 - 1 + e^.5 - .5 - 1 = .255252
    # t = 3: one completion: not compared, weight 1
    # minmax over 0, 1.086161, .255252: 0, 1, .235004; w = 1 + .7 * minmax
    found = tw_token_weights(MASK, at(LOG_PROBS))
    row = torch.tensor([1.0, 1.7, 1 + 0.7 * 0.235004, 1.0])
    torch.testing.assert_close(found.weights, torch.stack([row, row * MASK[1]]), atol=1e-5, rtol=0)
    metrics = {name: float(value) for name, value in found.metrics.items()}
    assert metrics["tw_grpo/divergence_mean"] == pytest.approx((1.086161 + 0.255252) / 3, abs=1e-5)
    assert metrics["tw_grpo/compared_frac"] == 0.75
    assert metrics["tw_grpo/weight_max"] == pytest.approx(1.7)
    halved = tw_token_weights(MASK, at(LOG_PROBS), alpha=1.35).weights
    torch.testing.assert_close(halved - MASK.float(), (found.weights - MASK.float()) / 2)


def test_the_release_puts_a_uniform_distribution_where_one_has_ended():
    # t = 3: (-5, 0) beside (-.693147, -.693147): m = (-2.846574, -.346574)
    # first: c = 2.153426, -.346574: 8.614324 - 3.153426 + .707107 - .653426 = 5.514578
    # uniform: c = -2.153426, .346574: .116086 + 1.153426 + 1.414214 - 1.346574 = 1.337152; mean 3.425865
    # now the largest: t = 1 has 1.086161 / 3.425865 = .317047
    found = tw_token_weights(MASK, at(LOG_PROBS), padding="release").weights
    row = torch.tensor([1.0, 1 + 0.7 * 0.317047, 1 + 0.7 * 0.255252 / 3.425865, 1.7])
    torch.testing.assert_close(found, torch.stack([row, row * MASK[1]]), atol=1e-5, rtol=0)


def test_the_neutral_setting_and_what_cannot_be_compared_are_ones():
    assert torch.equal(tw_token_weights(MASK, at(LOG_PROBS), alpha=1.0).weights, MASK.float())
    for mask, log_probs in (
        (MASK[:1], LOG_PROBS[:1]),  # one completion
        (MASK[:, :1], LOG_PROBS[:, :1]),  # one position
        (torch.zeros(2, 3), LOG_PROBS[:, :3]),
        (torch.zeros(2, 0), LOG_PROBS[:, :0]),
    ):
        assert torch.equal(tw_token_weights(mask, at(log_probs)).weights, mask.float())


def test_a_gap_in_a_completion_keeps_the_positions_of_the_others():
    """Tokens of a tool are no completion tokens: what follows them is still at its position."""
    mask = torch.tensor([[True, False, True], [True, True, True]])
    # t = 1: the second alone; t = 0: D = 0; t = 2: .255252: the largest
    torch.testing.assert_close(
        tw_token_weights(mask, at(LOG_PROBS[:, :3])).weights, torch.tensor([[1.0, 0.0, 1.7], [1.0, 1.0, 1.7]])
    )


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    alpha=st.floats(0, 3),
    padding=st.sampled_from(["skip", "release"]),
)
def test_it_is_the_loop(lengths, seed, alpha, padding):
    width, words = max(lengths) + 1, 4
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(lengths), width, words, generator=generator, dtype=torch.float64)
    log_probs = torch.log_softmax(logits, -1)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    log_probs[~mask] = math.nan
    found = tw_token_weights(mask, at(log_probs), alpha=alpha, padding=padding).weights
    divergences = {}
    for t in range(width):
        rows = [log_probs[g, t].tolist() for g in range(len(lengths)) if t < lengths[g]]
        if padding == "release" and rows:
            rows += [[-math.log(words)] * words] * (len(lengths) - len(rows))
        elif len(rows) < 2:
            continue
        if not rows:
            continue
        mean = [sum(row[v] for row in rows) / len(rows) for v in range(words)]
        c = [[min(11.0, max(-11.0, mean[v] - row[v])) for v in range(words)] for row in rows]
        divergences[t] = sum(math.exp(x) - x - 1 for row in c for x in row) / len(rows)
    low, high = min(divergences.values(), default=0), max(divergences.values(), default=0)
    for t in range(width):
        share = (divergences[t] - low) / (high - low) if t in divergences and high > low else 0.0
        for g, length in enumerate(lengths):
            wanted = 1 + (alpha - 1) * share if t < length else 0.0
            assert found[g, t].item() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"padding": "none"}, "padding is 'none'"),
        ({"completion_mask": torch.ones(4)}, "completion_mask has shape"),
        ({"log_probs_at": at(torch.full((2, 4, 2), math.nan))}, "divergence is not finite"),
    ],
)
def test_bad_arguments_are_refused(change, words):
    arguments = {"completion_mask": MASK, "log_probs_at": at(LOG_PROBS), **change}
    with pytest.raises(ValueError, match=words):
        tw_token_weights(**arguments)
