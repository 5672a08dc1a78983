"""PGPO: dependency and weights against hand numbers and a plain loop."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_perception.objectives import pgpo_token_weights, visual_dependency

NAN = math.nan

# S such that ln(1 + S) = 0, 1, 2, 4: I = 0, .25, .5, 1
DEPENDENCY = torch.tensor([[0.0, math.e - 1, math.e**2 - 1, math.e**4 - 1, NAN]])
MASK = torch.tensor([[True, True, True, True, False]])


def test_dependency_by_hand():
    sighted = torch.tensor([[-1.0, -1.0, -1.0, -1.0]])
    blind = torch.tensor([[-1.0, -2.0, 0.0, -6.0]])
    # ln r = blind_logps - sighted_logps = 0, -1, 1, -5
    # 0; e^-1 - 1 + 1 = .367879; e - 1 - 1 = .718282; e^-5 - 1 + 5 = 4.006738
    expected = torch.tensor([[0.0, 0.367879, 0.718282, 4.006738]])
    torch.testing.assert_close(visual_dependency(sighted, blind), expected)


def test_dependency_is_lopsided_and_clamped():
    sighted, blind = torch.tensor([[-6.0]]), torch.tensor([[-1.0]])
    # ln r = 5: e^5 - 6 = 142.413159, clamped to 10
    assert visual_dependency(sighted, blind).item() == 10.0
    assert visual_dependency(sighted, blind, clamp=(0.0, 200.0)).item() == pytest.approx(142.413159, rel=1e-6)
    assert visual_dependency(sighted, blind, clamp=None).item() == pytest.approx(142.413159, rel=1e-6)
    assert visual_dependency(blind, blind, clamp=(0.5, 2.0)).item() == 0.5


def test_log_ratio_is_clamped_to_twenty_unless_literal():
    sighted, blind = torch.tensor([[-30.0]], dtype=torch.float64), torch.tensor([[-1.0]], dtype=torch.float64)
    # ln r = 29 -> 20: e^20 - 21; the literal paper: e^29 - 30
    held = visual_dependency(sighted, blind, clamp=(0.0, 1e15)).item()
    assert held == pytest.approx(math.exp(20) - 21, rel=1e-12)
    assert visual_dependency(sighted, blind, clamp=None).item() == pytest.approx(math.exp(29) - 30, rel=1e-12)


def test_dependency_is_detached_and_reads_half_precision():
    sighted = torch.tensor([[-1.0, NAN]], dtype=torch.bfloat16, requires_grad=True)
    found = visual_dependency(sighted, torch.tensor([[-2.0, NAN]], dtype=torch.bfloat16))
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert found[0, 0].item() == pytest.approx(math.exp(-1), abs=1e-6)


def test_dependency_refuses_bad_arguments():
    with pytest.raises(ValueError, match=r"blind_logps has shape \(1, 2\)"):
        visual_dependency(torch.zeros(1, 3), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="wanted 0 <= low <= high"):
        visual_dependency(torch.zeros(1, 3), torch.zeros(1, 3), clamp=(2.0, 1.0))


def test_weights_by_hand():
    # tau .4, beta 2: w = 0 / .4 = 0; .25 / .4 = .625; 1 + 2 (.5 - .4) / .6 = 1.333333; 1 + 2 (.6) / .6 = 3
    # sum 4.958333; n / sum = 4 / 4.958333 = .806723
    found = pgpo_token_weights(DEPENDENCY, MASK)
    expected = torch.tensor([[0.0, 0.504202, 1.075630, 2.420168, 0.0]])
    torch.testing.assert_close(found.weights, expected, atol=1e-5, rtol=0)
    metrics = {name: float(value) for name, value in found.metrics.items()}
    assert metrics["pgpo/mass_scale"] == pytest.approx(0.806723, abs=1e-5)
    assert metrics["pgpo/amplified_frac"] == 0.5
    assert metrics["pgpo/weight_max"] == pytest.approx(2.420168, abs=1e-5)
    assert metrics["pgpo/uniform_frac"] == 0.0
    # (0 + 1.718282 + 6.389056 + 53.598150) / 4 = 15.426372
    assert metrics["pgpo/dependency_mean"] == pytest.approx(15.426372, abs=1e-4)


def test_free_mass_floor_and_cap_by_hand():
    # w = 0, .625, 1.333333, 3 as above
    free = pgpo_token_weights(DEPENDENCY, MASK, conserve_mass=False).weights
    torch.testing.assert_close(free, torch.tensor([[0.0, 0.625, 4 / 3, 3.0, 0.0]]), atol=1e-5, rtol=0)
    floor = pgpo_token_weights(DEPENDENCY, MASK, conserve_mass=False, weight_floor=0.8).weights
    torch.testing.assert_close(floor, torch.tensor([[0.8, 0.8, 4 / 3, 3.0, 0.0]]), atol=1e-5, rtol=0)
    capped = pgpo_token_weights(DEPENDENCY, MASK, conserve_mass=False, max_weight=1.2).weights
    torch.testing.assert_close(capped, torch.tensor([[0.0, 0.625, 1.2, 1.2, 0.0]]), atol=1e-5, rtol=0)
    # with mass: 0, .504202, 1.075630, 2.420168 -> cap 2: sum 3.579832; times 4 / 3.579832 = 1.117371
    both = pgpo_token_weights(DEPENDENCY, MASK, max_weight=2.0).weights
    torch.testing.assert_close(both, torch.tensor([[0.0, 0.563380, 1.201878, 2.234742, 0.0]]), atol=1e-5, rtol=0)


def test_quantile_threshold_by_hand():
    # I = 0, .25, .5, 1; the .5 quantile is .375; w = 0, .25 / .375 = .666667,
    # 1 + 2 (.125) / .625 = 1.4, 1 + 2 (.625) / .625 = 3
    found = pgpo_token_weights(DEPENDENCY, MASK, threshold=0.5, threshold_mode="quantile", conserve_mass=False).weights
    torch.testing.assert_close(found, torch.tensor([[0.0, 2 / 3, 1.4, 3.0, 0.0]]), atol=1e-5, rtol=0)


def test_completions_with_equal_dependency_get_ones():
    dependency = torch.tensor([[0.3, 0.3, 0.3], [2.0, NAN, NAN], [NAN, NAN, NAN], [0.0, 0.0, NAN]])
    mask = torch.tensor([[True] * 3, [True, False, False], [False] * 3, [True, True, False]])
    for options in ({}, {"conserve_mass": False}, {"max_weight": 1.5}, {"threshold_mode": "quantile"}):
        found = pgpo_token_weights(dependency, mask, **options)
        assert torch.equal(found.weights, mask.float())
        assert float(found.metrics["pgpo/uniform_frac"]) == 1.0


def test_a_token_that_depends_more_weighs_more():
    found = pgpo_token_weights(torch.tensor([[0.1, 5.0]]), torch.ones(1, 2)).weights
    assert found[0, 0] < 1 < found[0, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold_mode": "median"}, "threshold_mode is 'median'"),
        ({"visual_boost": -1.0}, "visual_boost is -1.0"),
        ({"weight_floor": -0.1}, "weight_floor is -0.1"),
        ({"max_weight": 0.0}, "max_weight is 0.0"),
        ({"eps": 0.0}, "eps is 0.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        pgpo_token_weights(DEPENDENCY, MASK, **change)


def test_wrong_tensors_are_refused():
    with pytest.raises(ValueError, match=r"completion_mask has shape \(1, 4\)"):
        pgpo_token_weights(DEPENDENCY, MASK[:, :4])
    with pytest.raises(ValueError, match=r"dependency\[0, 4\] is nan"):
        pgpo_token_weights(DEPENDENCY, torch.ones(1, 5))
    with pytest.raises(ValueError, match="dependency goes down to -3"):
        pgpo_token_weights(torch.tensor([[-3.0, 1.0]]), torch.ones(1, 2))


# ---- against a plain loop ----


def loop_weights(
    dependency, mask, threshold, visual_boost, eps, threshold_mode, weight_floor, conserve_mass, max_weight
):
    weights = []
    for row, valid in zip(dependency, mask, strict=True):
        kept = [t for t in range(len(row)) if valid[t]]
        n = len(kept)
        damped = [math.log(1 + row[t]) for t in kept]
        weights.append([0.0] * len(row))
        if n <= 1 or max(damped) - min(damped) <= eps:
            for t in kept:
                weights[-1][t] = 1.0
            continue
        importance = [(s - min(damped)) / (max(damped) - min(damped) + eps) for s in damped]
        tau = threshold
        if threshold_mode == "quantile":
            position = threshold * (n - 1)
            below = math.floor(position)
            ordered = sorted(importance)
            tau = ordered[below] + (position - below) * (ordered[min(below + 1, n - 1)] - ordered[below])
        found = [i / (tau + eps) if i < tau else 1 + visual_boost * (i - tau) / (1 - tau + eps) for i in importance]
        found = [max(w, weight_floor) for w in found]
        if conserve_mass:
            total = sum(found)
            found = [w * n / total for w in found]
        if max_weight is not None:
            found = [min(w, max_weight) for w in found]
            if conserve_mass:
                total = sum(found)
                found = [w * n / total for w in found]
        for t, w in zip(kept, found, strict=True):
            weights[-1][t] = w
    return weights


def random_batch(seed, dtype=torch.float64, batch=5, length=12):
    generator = torch.Generator().manual_seed(seed)
    dependency = 3 * torch.rand(batch, length, generator=generator, dtype=torch.float64).square()
    mask = torch.rand(batch, length, generator=generator) < 0.6
    mask[0] = torch.arange(length) < 1
    return dependency.masked_fill(~mask, NAN).to(dtype), mask


@pytest.mark.parametrize("max_weight", [None, 1.3])
@pytest.mark.parametrize("conserve_mass", [True, False])
@pytest.mark.parametrize("weight_floor", [0.0, 0.4])
@pytest.mark.parametrize("threshold_mode", ["absolute", "quantile"])
def test_weights_match_the_loop(threshold_mode, weight_floor, conserve_mass, max_weight):
    for seed, (threshold, boost) in enumerate([(0.4, 2.0), (0.0, 1.0), (0.9, 0.5), (1.0, 3.0), (0.25, 0.0)]):
        options = {"threshold": threshold, "visual_boost": boost, "eps": 1e-8, "threshold_mode": threshold_mode}
        options |= {"weight_floor": weight_floor, "conserve_mass": conserve_mass, "max_weight": max_weight}
        dependency, mask = random_batch(seed)
        expected = torch.tensor(loop_weights(dependency.tolist(), mask.tolist(), **options))
        torch.testing.assert_close(pgpo_token_weights(dependency, mask, **options).weights, expected, atol=1e-6, rtol=0)
        if threshold < 1:  # at 1 the top token is on the boundary, and float32 may round it to either side
            found = pgpo_token_weights(dependency.float(), mask.int(), **options).weights
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


# ---- properties ----

bounded = settings(max_examples=50, deadline=None)
seeds = st.integers(0, 100_000)
options_of = st.fixed_dictionaries(
    {
        "threshold": st.floats(0, 1),
        "visual_boost": st.floats(0, 5),
        "threshold_mode": st.sampled_from(["absolute", "quantile"]),
        "weight_floor": st.floats(0, 1),
        "max_weight": st.none() | st.floats(1, 3),
    }
)


@bounded
@given(seed=seeds, options=options_of)
def test_mass_is_conserved_and_order_kept(seed, options):
    dependency, mask = random_batch(seed, torch.float32)
    found = pgpo_token_weights(dependency, mask, **options).weights
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert (found >= 0).all()
    assert (found[~mask] == 0).all()
    torch.testing.assert_close(found.sum(-1), mask.sum(-1).float(), atol=1e-4, rtol=0)
    for row in range(len(found)):
        order = dependency[row][mask[row]].argsort()
        assert (found[row][mask[row]][order].diff() >= -1e-6).all()


@bounded
@given(seed=seeds)
def test_neutral_settings_give_ones(seed):
    dependency, mask = random_batch(seed, torch.float32)
    found = pgpo_token_weights(dependency, mask, visual_boost=0.0, threshold=0.0, conserve_mass=False)
    assert torch.equal(found.weights, mask.float())


@bounded
@given(seed=seeds, options=options_of)
def test_permuting_completions_permutes_weights(seed, options):
    dependency, mask = random_batch(seed, torch.float32)
    order = torch.randperm(len(mask), generator=torch.Generator().manual_seed(seed))
    found = pgpo_token_weights(dependency[order], mask[order], **options).weights
    assert torch.equal(found, pgpo_token_weights(dependency, mask, **options).weights[order])


@bounded
@given(seed=seeds, options=options_of, poison=st.sampled_from([NAN, math.inf, -math.inf, 99.0, -99.0]))
def test_padding_never_reaches_the_weights(seed, options, poison):
    dependency, mask = random_batch(seed, torch.float32)
    before = dependency.clone()
    clean = pgpo_token_weights(dependency.masked_fill(~mask, 0.0), mask, **options)
    longer = torch.nn.functional.pad(dependency.masked_fill(~mask, poison), (0, 3), value=poison)
    found = pgpo_token_weights(longer, torch.nn.functional.pad(mask, (0, 3)), **options)
    # summation over a longer row may round differently
    torch.testing.assert_close(found.weights[:, :-3], clean.weights, atol=1e-6, rtol=1e-6)
    assert (found.weights[:, -3:] == 0).all()
    for name, value in found.metrics.items():
        assert float(value) == pytest.approx(float(clean.metrics[name]), rel=1e-5)
    torch.testing.assert_close(dependency, before, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read(dtype):
    dependency, mask = random_batch(3, dtype)
    found = pgpo_token_weights(dependency, mask).weights
    torch.testing.assert_close(found, pgpo_token_weights(dependency.double(), mask).weights, atol=1e-4, rtol=0)
