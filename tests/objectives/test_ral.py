"""RAL: attention policies and the penalty against hand numbers, a plain loop and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_perception.objectives import attention_policy, ral_penalty

NAN = math.nan
LN2 = math.log(2)

POLICY = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [NAN, NAN]]])
OLD = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.0, 1.0], [NAN, 99.0]]])
MASK = torch.tensor([[True, True], [True, False]])


def test_attention_policy_renormalises_over_allowed_keys():
    rows = torch.tensor([[[0.1, 0.3, 0.4, 0.2], [0.5, NAN, 0.25, 99.0]]])
    keys = torch.tensor([[[True, True, False, False], [True, False, True, False]]])
    # .1 / .4 = .25, .3 / .4 = .75; .5 / .75 = 2/3, .25 / .75 = 1/3
    expected = torch.tensor([[[0.25, 0.75, 0.0, 0.0], [2 / 3, 0.0, 1 / 3, 0.0]]])
    torch.testing.assert_close(attention_policy(rows, keys), expected)


def test_attention_policy_without_allowed_mass_is_zero_with_no_gradient():
    rows = torch.tensor([[[0.5, NAN], [NAN, NAN], [0.0, 0.3]]], requires_grad=True)
    keys = torch.tensor([[[True, False], [False, False], [True, False]]])
    found = attention_policy(rows, keys)
    assert found.tolist() == [[[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]]
    (found * torch.tensor([3.0, 5.0])).sum().backward()
    assert torch.isfinite(rows.grad).all()
    assert (rows.grad[0, 1:] == 0).all()


def test_attention_policy_gradient_by_hand():
    rows = torch.tensor([[[0.2, 0.6, 0.2]]], requires_grad=True)
    attention_policy(rows, torch.tensor([[[True, True, False]]]))[0, 0, 0].backward()
    # p_0 = a / (a + b): dp_0/da = b / (a + b)^2 = .6 / .64 = .9375, dp_0/db = -a / (a + b)^2 = -.3125
    torch.testing.assert_close(rows.grad, torch.tensor([[[0.9375, -0.3125, 0.0]]]))


def test_a_broken_row_is_not_hidden():
    found = attention_policy(torch.tensor([[[NAN, 0.5]]]), torch.ones(1, 1, 2))
    assert found.isnan().any()


def test_attention_policy_dtypes_and_errors():
    for dtype, expected in [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ]:
        assert attention_policy(torch.ones(1, 1, 2, dtype=dtype), torch.ones(1, 1, 2)).dtype == expected
    with pytest.raises(ValueError, match=r"rows has shape \(2, 3\); wanted 3 axes"):
        attention_policy(torch.zeros(2, 3), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"key_mask has shape \(1, 1, 3\); wanted \(B,T,S\) = \(1, 1, 2\)"):
        attention_policy(torch.zeros(1, 1, 2), torch.ones(1, 1, 3))


def test_penalty_by_hand():
    # JSD: (1, 0) | (.5, .5) = .215762; equal 0; disjoint ln 2. Three valid tokens.
    # (2 * .215762 + 2 * 0 - 1 * .693147) / 3 = (.431523 - .693147) / 3 = -.087208; times .5
    found = ral_penalty(POLICY, OLD, torch.tensor([2.0, -1.0]), MASK, weight=0.5)
    assert found.loss.item() == pytest.approx(-0.043604, abs=1e-6)
    metrics = {name: float(value) for name, value in found.metrics.items()}
    # (.215762 + 0 + .693147) / 3; A > 0: (.215762 + 0) / 2; A < 0: ln 2; entropy (0 + ln 2 + 0) / 3
    assert metrics["ral/jsd"] == pytest.approx(0.302970, abs=1e-6)
    assert metrics["ral/jsd_positive"] == pytest.approx(0.107881, abs=1e-6)
    assert metrics["ral/jsd_negative"] == pytest.approx(LN2, abs=1e-6)
    assert metrics["ral/attention_entropy"] == pytest.approx(LN2 / 3, abs=1e-6)


def test_the_number_of_tokens_of_a_step_takes_the_place_of_the_batchs():
    # the sums above, over 5 tokens: (.431523 - .693147) / 5 * .5, .908909 / 5 and ln 2 / 5
    found = ral_penalty(POLICY, OLD, torch.tensor([2.0, -1.0]), MASK, weight=0.5, num_tokens=5.0)
    assert found.loss.item() == pytest.approx(-0.026162, abs=1e-6)
    assert float(found.metrics["ral/jsd"]) == pytest.approx(0.181782, abs=1e-6)
    assert float(found.metrics["ral/attention_entropy"]) == pytest.approx(LN2 / 5, abs=1e-6)
    with pytest.raises(ValueError, match=r"num_tokens is 0; wanted a finite number > 0, or None"):
        ral_penalty(POLICY, OLD, torch.zeros(2), MASK, num_tokens=0)


def test_an_advantage_of_zero_belongs_to_neither_side():
    metrics = ral_penalty(POLICY, OLD, torch.tensor([0.0, -1.0]), MASK).metrics
    assert float(metrics["ral/jsd_positive"]) == 0.0
    assert float(metrics["ral/jsd_negative"]) == pytest.approx(LN2, abs=1e-6)


def test_the_mean_runs_over_all_valid_tokens_not_over_completions():
    policy, old = torch.tensor([[[1.0, 0.0]] * 3, [[1.0, 0.0]] * 3]), torch.tensor([[[0.0, 1.0]] * 3] * 2)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    # every token ln 2: (3 * 1 + 1 * -1) / 4 ln 2 = .5 ln 2; a mean of completion means would be 0
    assert ral_penalty(policy, old, torch.tensor([1.0, -1.0]), mask).loss.item() == pytest.approx(LN2 / 2, abs=1e-6)


def test_gradient_by_hand_and_old_policy_is_detached():
    policy = torch.tensor([[[0.8, 0.2]]], requires_grad=True)
    old = torch.tensor([[[0.2, 0.8]]], requires_grad=True)
    advantages = torch.tensor([-2.0], requires_grad=True)
    ral_penalty(policy, old, advantages, torch.ones(1, 1), weight=3.0).loss.backward()
    # 3 * -2 * (1/2 ln 1.6, 1/2 ln .4) = -6 * (.235002, -.458145)
    torch.testing.assert_close(policy.grad, torch.tensor([[[-1.410011, 2.748872]]]), atol=1e-5, rtol=0)
    assert old.grad is None
    assert advantages.grad is None


@pytest.mark.parametrize(("advantage", "nearer"), [(1.0, True), (-1.0, False)])
def test_descent_returns_to_good_attention_and_leaves_bad_attention(advantage, nearer):
    logits = torch.tensor([[[1.0, 0.0, -1.0]]], requires_grad=True)
    old = torch.tensor([[[0.2, 0.3, 0.5]]])
    distances = []
    for _ in range(2):
        found = ral_penalty(logits.softmax(-1), old, torch.tensor([advantage]), torch.ones(1, 1))
        distances.append(float(found.metrics["ral/jsd"]))
        assert found.loss.item() == pytest.approx(advantage * distances[-1], abs=1e-6)
        (gradient,) = torch.autograd.grad(found.loss, logits)
        logits = (logits - gradient).detach().requires_grad_()
    assert (distances[1] < distances[0]) == nearer


def test_an_empty_mask_gives_a_zero_in_the_graph():
    policy = torch.full((2, 2, 3), NAN, requires_grad=True)
    found = ral_penalty(policy, policy, torch.tensor([NAN, 1.0]), torch.zeros(2, 2))
    assert found.loss.item() == 0.0
    found.loss.backward()
    assert (policy.grad == 0).all()
    assert all(float(value) == 0 for value in found.metrics.values())


def test_rows_of_zeros_take_no_part():
    policy = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], requires_grad=True)
    old = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    found = ral_penalty(policy, old, torch.ones(1), torch.ones(1, 2))
    # ln 2 over two valid tokens
    assert found.loss.item() == pytest.approx(LN2 / 2, abs=1e-6)
    found.loss.backward()
    assert policy.grad[0, 1].tolist() == [0.0, 0.0]


def test_wrong_tensors_are_refused():
    with pytest.raises(ValueError, match=r"old_policy has shape \(2, 2, 3\)"):
        ral_penalty(POLICY, torch.zeros(2, 2, 3), torch.zeros(2), MASK)
    with pytest.raises(ValueError, match=r"advantages has shape \(2, 2\); wanted 1 axes, \(B\)"):
        ral_penalty(POLICY, OLD, torch.zeros(2, 2), MASK)
    with pytest.raises(ValueError, match=r"completion_mask has shape \(2, 3\)"):
        ral_penalty(POLICY, OLD, torch.zeros(2), torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"weight is -1\.0"):
        ral_penalty(POLICY, OLD, torch.zeros(2), MASK, weight=-1.0)


# ---- against a plain loop and finite differences ----


def loop_penalty(policy, old, advantages, mask, weight):
    total, count = 0.0, 0
    for b in range(len(policy)):
        for t in range(len(policy[b])):
            if not mask[b][t]:
                continue
            count += 1
            for p, q in zip(policy[b][t], old[b][t], strict=True):
                m = (p + q) / 2
                total += advantages[b] * 0.5 * (p * math.log(p / m) if p > 0 else 0.0)
                total += advantages[b] * 0.5 * (q * math.log(q / m) if q > 0 else 0.0)
    return weight * total / max(count, 1)


def random_batch(seed, dtype=torch.float64, batch=3, length=5, keys=7, zeros=0.3):
    generator = torch.Generator().manual_seed(seed)
    rows, old_rows = torch.rand(2, batch, length, keys, generator=generator, dtype=torch.float64).unbind()
    allowed = torch.rand(batch, length, keys, generator=generator) >= zeros
    mask = torch.rand(batch, length, generator=generator) < 0.7
    poison = ~mask.unsqueeze(-1)
    policy = attention_policy(rows, allowed).masked_fill(poison, NAN)
    old = attention_policy(old_rows, allowed).masked_fill(poison, NAN)
    advantages = torch.randn(batch, generator=generator, dtype=torch.float64)
    return policy.to(dtype), old.to(dtype), advantages.to(dtype), mask


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_penalty_matches_the_loop(dtype):
    for seed in range(8):
        policy, old, advantages, mask = random_batch(seed, dtype)
        expected = loop_penalty(*(x.double().tolist() for x in (policy, old, advantages)), mask.tolist(), weight=1.7)
        found = ral_penalty(policy, old, advantages, mask, weight=1.7)
        assert found.loss.item() == pytest.approx(expected, abs=1e-12 if dtype == torch.float64 else 1e-6)


def test_gradcheck_from_logits_to_loss():
    _, old, advantages, mask = random_batch(1)
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(old.shape, generator=generator, dtype=torch.float64, requires_grad=True)
    allowed = ~torch.nan_to_num(old).eq(0)

    def loss(logits):
        return ral_penalty(attention_policy(logits.softmax(-1), allowed), old, advantages, mask, weight=0.5).loss

    assert torch.autograd.gradcheck(loss, (logits,))


# ---- properties ----

bounded = settings(max_examples=50, deadline=None)
seeds = st.integers(0, 100_000)


@bounded
@given(seed=seeds, weight=st.floats(0, 5))
def test_zero_with_zero_gradient_while_nothing_moved_or_nothing_weighs(seed, weight):
    policy, old, advantages, mask = random_batch(seed, torch.float32)
    policy.requires_grad_()
    for reference, factor in ((policy, weight), (old, 0.0)):
        found = ral_penalty(policy, reference, advantages, mask, weight=factor)
        assert found.loss.item() == 0.0
        (gradient,) = torch.autograd.grad(found.loss, policy)
        assert (gradient == 0).all()


@bounded
@given(seed=seeds)
def test_the_penalty_follows_the_sign_of_the_advantage(seed):
    policy, old, advantages, mask = random_batch(seed)
    found = ral_penalty(policy, old, advantages, mask).loss.item()
    assert ral_penalty(policy, old, -advantages, mask).loss.item() == pytest.approx(-found)
    assert ral_penalty(policy, old, advantages.abs(), mask).loss.item() >= 0


@bounded
@given(seed=seeds, poison=st.sampled_from([NAN, math.inf, -1.0, 99.0]))
def test_padding_never_reaches_loss_or_gradient(seed, poison):
    policy, old, advantages, mask = random_batch(seed)
    hidden = ~mask.unsqueeze(-1)
    results = []
    for filler in (0.0, poison):
        values = policy.masked_fill(hidden, filler).requires_grad_()
        blank = torch.where(mask.any(-1), advantages, filler)
        found = ral_penalty(values, old.masked_fill(hidden, filler), blank, mask)
        found.loss.backward()
        results.append((found.loss.detach(), values.grad, [float(value) for value in found.metrics.values()]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]
    longer = torch.nn.functional.pad
    found = ral_penalty(
        longer(policy, (0, 2, 0, 3)), longer(old, (0, 2, 0, 3)), advantages, longer(mask, (0, 3))
    )  # two keys without attention, three padded tokens
    assert found.loss.item() == pytest.approx(results[0][0].item(), abs=1e-12)


def test_inputs_are_not_written_to():
    batch = random_batch(2)
    before = [tensor.clone() for tensor in batch]
    ral_penalty(*batch)
    for tensor, copy in zip(batch, before, strict=True):
        torch.testing.assert_close(tensor, copy, rtol=0, atol=0, equal_nan=True)
