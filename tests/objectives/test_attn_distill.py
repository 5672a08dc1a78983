"""Attention distillation against hand numbers, a plain loop and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_perception.objectives import attn_distill_penalty

NAN = math.nan
LN2 = math.log(2)

STUDENT = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [NAN, NAN]]])
TEACHER = torch.tensor([[[0.5, 0.5], [0.5, 0.5]], [[0.0, 1.0], [NAN, 99.0]]])
MASK = torch.tensor([[True, True], [True, False]])


def test_penalty_by_hand():
    # JSD of the three valid tokens: .215762, 0, .693147; sum .908909, mean .302970; weight 2
    mean = attn_distill_penalty(STUDENT, TEACHER, MASK, weight=2.0)
    assert mean.loss.item() == pytest.approx(0.605939, abs=1e-6)
    assert attn_distill_penalty(STUDENT, TEACHER, MASK, weight=2.0, reduction="sum").loss.item() == pytest.approx(
        1.817818, abs=1e-6
    )
    metrics = {name: float(value) for name, value in mean.metrics.items()}
    # entropies: student 0, ln 2, 0; teacher ln 2, ln 2, 0
    assert metrics["attn_distill/jsd"] == pytest.approx(0.302970, abs=1e-6)
    assert metrics["attn_distill/attention_entropy"] == pytest.approx(LN2 / 3, abs=1e-6)
    assert metrics["attn_distill/teacher_entropy"] == pytest.approx(2 * LN2 / 3, abs=1e-6)


def test_default_weight_is_one_half():
    assert attn_distill_penalty(STUDENT, TEACHER, MASK).loss.item() == pytest.approx(0.151485, abs=1e-6)


def test_what_the_sums_are_divided_by():
    # sum .908909 over 3 tokens of 2 completions; a step whose micro-batches have 4 tokens and 2.5 completions on average
    counts = {"num_tokens": 4.0, "num_completions": 2.5}
    mean = attn_distill_penalty(STUDENT, TEACHER, MASK, weight=2.0, **counts)
    assert mean.loss.item() == pytest.approx(0.454454, abs=1e-6)  # 2 * .908909 / 4
    total = attn_distill_penalty(STUDENT, TEACHER, MASK, weight=2.0, reduction="sum", **counts)
    assert total.loss.item() == pytest.approx(0.727127, abs=1e-6)  # 2 * .908909 / 2.5
    for penalty in (mean, total):
        assert float(penalty.metrics["attn_distill/jsd"]) == pytest.approx(0.227227, abs=1e-6)
        assert float(penalty.metrics["attn_distill/teacher_entropy"]) == pytest.approx(LN2 / 2, abs=1e-6)
    for name in counts:
        with pytest.raises(ValueError, match=rf"{name} is 0; wanted a finite number > 0, or None"):
            attn_distill_penalty(STUDENT, TEACHER, MASK, **{name: 0})


def test_only_the_student_learns_and_it_moves_towards_the_teacher():
    student = torch.tensor([[[0.8, 0.2]]], requires_grad=True)
    teacher = torch.tensor([[[0.2, 0.8]]], requires_grad=True)
    attn_distill_penalty(student, teacher, torch.ones(1, 1), weight=1.0).loss.backward()
    # 1/2 ln 1.6 = .235002 and 1/2 ln .4 = -.458145: descent moves mass from the first key to the second
    torch.testing.assert_close(student.grad, torch.tensor([[[0.235002, -0.458145]]]), atol=1e-5, rtol=0)
    assert teacher.grad is None


def test_an_empty_mask_gives_a_zero_in_the_graph():
    for reduction in ("mean", "sum"):
        student = torch.full((1, 2, 3), NAN, requires_grad=True)
        found = attn_distill_penalty(student, student, torch.zeros(1, 2), reduction=reduction)
        assert found.loss.item() == 0.0
        found.loss.backward()
        assert (student.grad == 0).all()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"teacher_policy has shape \(2, 2, 3\)"):
        attn_distill_penalty(STUDENT, torch.zeros(2, 2, 3), MASK)
    with pytest.raises(ValueError, match="reduction is 'none'; wanted one of 'mean', 'sum'"):
        attn_distill_penalty(STUDENT, TEACHER, MASK, reduction="none")
    with pytest.raises(ValueError, match=r"weight is -1\.0"):
        attn_distill_penalty(STUDENT, TEACHER, MASK, weight=-1.0)


def random_batch(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (2 * torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64)).softmax(-1).unbind()
    mask = torch.rand(3, 4, generator=generator) < 0.7
    hidden = ~mask.unsqueeze(-1)
    return student.masked_fill(hidden, NAN).to(dtype), teacher.masked_fill(hidden, NAN).to(dtype), mask


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_penalty_matches_the_loop(dtype, reduction):
    for seed in range(5):
        student, teacher, mask = random_batch(seed, dtype)
        total, count = 0.0, 0
        for b, t in mask.nonzero().tolist():
            count += 1
            for p, q in zip(student[b, t].double().tolist(), teacher[b, t].double().tolist(), strict=True):
                m = (p + q) / 2
                total += (p * math.log(p / m) + q * math.log(q / m)) / 2
        expected = 0.3 * total / (max(count, 1) if reduction == "mean" else 1)
        found = attn_distill_penalty(student, teacher, mask, weight=0.3, reduction=reduction).loss.item()
        assert found == pytest.approx(expected, abs=1e-12 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradcheck(reduction):
    _, teacher, mask = random_batch(1)
    logits = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(logits):
        return attn_distill_penalty(logits.softmax(-1), teacher, mask, reduction=reduction).loss

    assert torch.autograd.gradcheck(loss, (logits.requires_grad_(),))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 100_000), poison=st.sampled_from([NAN, math.inf, 99.0]), weight=st.floats(0, 3))
def test_bounds_padding_and_neutral_settings(seed, poison, weight):
    student, teacher, mask = random_batch(seed)
    hidden = ~mask.unsqueeze(-1)
    student = student.masked_fill(hidden, poison).requires_grad_()
    found = attn_distill_penalty(student, teacher, mask, weight=weight).loss
    assert -1e-12 <= found.item() <= weight * LN2 + 1e-12
    (gradient,) = torch.autograd.grad(found, student)
    assert torch.isfinite(gradient).all()
    assert (gradient[~mask] == 0).all()
    longer = torch.nn.functional.pad
    padded = attn_distill_penalty(
        longer(student, (0, 0, 0, 2)), longer(teacher, (0, 0, 0, 2)), longer(mask, (0, 2)), weight=weight
    )
    assert padded.loss.item() == pytest.approx(found.item(), abs=1e-12)
    for other, factor in ((student, weight), (teacher, 0.0)):
        still = attn_distill_penalty(student, other, mask, weight=factor).loss
        (gradient,) = torch.autograd.grad(still, student)
        assert still.item() == 0
        assert (gradient == 0).all()
