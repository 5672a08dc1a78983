"""Jensen-Shannon, KL, mixtures and k3 against hand numbers, plain loops and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_perception.objectives import jensen_shannon
from trl_perception.objectives.divergences import (
    entropy,
    k3,
    kl_divergence,
    log_mixture,
    masked_jensen_shannon,
    mean_kl_to_mixture,
)

NAN, INF = math.nan, math.inf


def loop_jsd(p, q):
    """The definition, entry by entry, on Python floats."""
    total = 0.0
    for a, b in zip(p, q, strict=True):
        m = (a + b) / 2
        total += 0.5 * (a * math.log(a / m) if a > 0 else 0.0)
        total += 0.5 * (b * math.log(b / m) if b > 0 else 0.0)
    return total


def random_rows(seed, *shape, zeros=0.0, sharpness=1.0):
    generator = torch.Generator().manual_seed(seed)
    rows = (sharpness * torch.randn(*shape, generator=generator, dtype=torch.float64)).softmax(-1)
    rows = torch.where(torch.rand(*shape, generator=generator) < zeros, 0.0, rows)
    rows[..., 0] += 1e-3
    return rows / rows.sum(-1, keepdim=True)


def test_jensen_shannon_by_hand():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    q = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.0, 1.0]])
    # m = (.75, .25): 1/2 ln(1/.75) + 1/2 (.5 ln(.5/.75) + .5 ln(.5/.25)) = .143841 + .071921 = .215762
    # equal: 0; disjoint: ln 2
    torch.testing.assert_close(jensen_shannon(p, q), torch.tensor([0.215762, 0.0, math.log(2)]), atol=1e-6, rtol=0)


def test_gradient_by_hand():
    p = torch.tensor([0.8, 0.2], requires_grad=True)
    q = torch.tensor([0.2, 0.8], requires_grad=True)
    jensen_shannon(p, q).backward()
    # m = (.5, .5): dJSD/dp = 1/2 ln(p/m) = (1/2 ln 1.6, 1/2 ln .4) = (.235002, -.458145); q mirrors it
    torch.testing.assert_close(p.grad, torch.tensor([0.235002, -0.458145]), atol=1e-5, rtol=0)
    torch.testing.assert_close(q.grad, torch.tensor([-0.458145, 0.235002]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_jensen_shannon_matches_the_definition(dtype, zeros):
    p, q = random_rows(1, 4, 17, zeros=zeros).to(dtype), random_rows(2, 4, 17, zeros=zeros).to(dtype)
    found = jensen_shannon(p, q)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for row in range(4):
        expected = loop_jsd(p[row].double().tolist(), q[row].double().tolist())
        assert found[row].item() == pytest.approx(expected, abs=1e-12 if dtype == torch.float64 else 2e-6)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), sharpness=st.floats(0, 60), zeros=st.floats(0, 0.9))
def test_jensen_shannon_is_bounded_and_symmetric(seed, sharpness, zeros):
    p = random_rows(seed, 3, 11, zeros=zeros, sharpness=sharpness).float()
    q = random_rows(seed + 1, 3, 11, zeros=zeros, sharpness=sharpness).float()
    found = jensen_shannon(p, q)
    assert (found >= 0).all()
    assert (found <= math.log(2) + 1e-6).all()
    torch.testing.assert_close(found, jensen_shannon(q, p))
    assert jensen_shannon(p, p).tolist() == [0.0, 0.0, 0.0]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), sharpness=st.floats(0, 100), zeros=st.floats(0, 0.9))
def test_gradient_is_finite_everywhere_and_zero_at_equality(seed, sharpness, zeros):
    p = random_rows(seed, 2, 9, zeros=zeros, sharpness=sharpness).float().requires_grad_()
    q = random_rows(seed + 1, 2, 9, zeros=zeros, sharpness=sharpness).float().requires_grad_()
    jensen_shannon(p, q).sum().backward()
    assert torch.isfinite(p.grad).all()
    assert torch.isfinite(q.grad).all()
    same = q.detach().clone().requires_grad_()
    jensen_shannon(same, q.detach()).sum().backward()
    assert (same.grad == 0).all()


def test_gradcheck_through_both_arguments():
    p = random_rows(3, 3, 6).requires_grad_()
    q = random_rows(4, 3, 6).requires_grad_()
    assert torch.autograd.gradcheck(jensen_shannon, (p, q))
    assert torch.autograd.gradgradcheck(jensen_shannon, (p, q))


def test_gradcheck_far_from_equality_and_where_the_other_is_zero():
    p = torch.tensor([[0.98, 0.019, 0.001], [0.5, 0.3, 0.2]], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[0.001, 0.0, 0.999], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: jensen_shannon(p, q), (p,))


def test_an_entry_without_mass_has_no_gradient():
    p = torch.tensor([0.0, 1.0], requires_grad=True)
    jensen_shannon(p, torch.tensor([0.5, 0.5])).backward()
    # 0 by convention; 1/2 ln(1 / .75) = .143841
    torch.testing.assert_close(p.grad, torch.tensor([0.0, 0.143841]), atol=1e-6, rtol=0)


def test_tiny_mass_keeps_its_true_gradient():
    p = torch.tensor([1e-30, 1.0], requires_grad=True)
    jensen_shannon(p, torch.tensor([1.0, 0.0])).backward()
    # 1/2 ln(2e-30) = 1/2 (.693147 - 69.077553) = -34.192203
    assert p.grad[0].item() == pytest.approx(-34.192203, abs=1e-4)


@pytest.mark.parametrize("step", [1e-2, 1e-3, 1e-4])
def test_small_differences_survive_float32(step):
    q = random_rows(5, 1, 64)
    p = q * (1 + step * torch.linspace(-1, 1, 64, dtype=torch.float64))
    p32, q32 = p.float().requires_grad_(), q.float()
    found = jensen_shannon(p32, q32)
    found.sum().backward()
    p64 = p32.detach().double().requires_grad_()
    expected = jensen_shannon(p64, q32.double())
    expected.sum().backward()
    # 1/2 (p ln(p/m) + q ln(q/m)) in float32 is off by more than 1e-3 at a step of 1e-4
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(p32.grad.double(), p64.grad, rtol=1e-4, atol=0)


def test_rows_of_zeros_give_zero():
    p = torch.zeros(2, 3, requires_grad=True)
    jensen_shannon(p, torch.zeros(2, 3)).sum().backward()
    assert (p.grad == 0).all()


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"p has shape \(2, 3\) and q \(2, 4\)"):
        jensen_shannon(torch.zeros(2, 3), torch.zeros(2, 4))


def test_inputs_are_not_written_to():
    p, q = random_rows(1, 2, 5), random_rows(2, 2, 5)
    before = p.clone(), q.clone()
    jensen_shannon(p, q)
    assert torch.equal(p, before[0])
    assert torch.equal(q, before[1])


def test_masked_jensen_shannon_ignores_poison():
    policy = torch.tensor([[[1.0, 0.0], [NAN, 99.0]]], requires_grad=True)
    reference = torch.tensor([[[0.0, 1.0], [NAN, NAN]]])
    found = masked_jensen_shannon(policy, reference, torch.tensor([[True, False]]))
    torch.testing.assert_close(found, torch.tensor([[math.log(2), 0.0]]))
    found.sum().backward()
    assert policy.grad[0, 1].tolist() == [0.0, 0.0]
    assert torch.isfinite(policy.grad).all()


def test_entropy_by_hand():
    # uniform over four: ln 4 = 1.386294; certain: 0; nothing: 0
    found = entropy(torch.tensor([[0.25] * 4, [0.0, 1.0, 0.0, 0.0], [0.0] * 4]))
    torch.testing.assert_close(found, torch.tensor([math.log(4), 0.0, 0.0]))


def test_kl_by_hand():
    log_p = torch.tensor([[0.75, 0.25], [1.0, 0.0], [0.5, 0.5]]).log()
    log_q = torch.tensor([[0.25, 0.75], [0.5, 0.5], [1.0, 0.0]]).log()
    # .75 ln 3 - .25 ln 3 = .5 ln 3 = .549306; ln 2 (the zero adds nothing); mass where q has none: inf
    torch.testing.assert_close(kl_divergence(log_p, log_q), torch.tensor([0.549306, math.log(2), INF]))


def test_mixture_is_the_mean_of_probabilities_not_of_logs():
    log_probs = torch.tensor([[0.9, 0.1, 0.0], [0.5, 0.5, 0.0], [NAN, NAN, NAN]]).log()
    found = log_mixture(log_probs, torch.tensor([True, True, False])).exp()
    # (.9 + .5) / 2 = .7, (.1 + .5) / 2 = .3
    torch.testing.assert_close(found, torch.tensor([0.7, 0.3, 0.0]))


def test_mean_kl_to_mixture_by_hand():
    log_probs = torch.tensor([[0.75, 0.25], [0.25, 0.75], [NAN, NAN]]).log()
    # m = (.5, .5); each KL = .75 ln 1.5 + .25 ln .5 = .304099 - .173287 = .130812
    found = mean_kl_to_mixture(log_probs, torch.tensor([True, True, False]))
    assert found.item() == pytest.approx(0.130812, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), members=st.integers(1, 6))
def test_equal_members_diverge_by_exactly_zero(seed, members):
    row = random_rows(seed, 50, sharpness=3.0, zeros=0.2).float().log()
    log_probs = row.expand(members, -1)
    assert mean_kl_to_mixture(log_probs, torch.ones(members, dtype=torch.bool)).item() == 0.0


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), members=st.integers(1, 6), sharpness=st.floats(0, 50))
def test_mean_kl_to_mixture_lies_between_zero_and_log_of_members(seed, members, sharpness):
    log_probs = random_rows(seed, members, 13, sharpness=sharpness, zeros=0.3).float().log()
    found = mean_kl_to_mixture(log_probs, torch.ones(members, dtype=torch.bool)).item()
    assert 0 <= found <= math.log(members) + 1e-5


def test_k3_by_hand_and_lopsided():
    # ln r = 0: 0; d = +5, ln r = -5: e^-5 - 1 + 5 = 4.006738; d = -5, ln r = 5: e^5 - 1 - 5 = 142.413159
    found = k3(torch.tensor([0.0, -5.0, 5.0]))
    torch.testing.assert_close(found, torch.tensor([0.0, 4.006738, 142.413159]))
    assert (k3(torch.linspace(-1e-3, 1e-3, 1001)) >= 0).all()
