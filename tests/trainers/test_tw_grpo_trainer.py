"""TWGRPOTrainer: weights, losses and gradients against the paper's formula, its options, and runs."""

import math

import pytest
import torch

from tests.trainers.reference import (
    OBJECTIVES,
    RUNS,
    TWO_UPDATES,
    Update,
    assert_neutral,
    assert_refused,
    assert_runs,
    build,
    policy_terms,
    size_of,
    trained,
)
from trl_perception import TWGRPOTrainer


def group_weights(readings, alpha, padding):
    """w of each position of a group."""
    rows = [reading.log_probs(0.8) for reading in readings]
    found = {}
    for t in range(max(map(len, rows))):
        at = [row[t] for row in rows if t < len(row)]
        if padding == "release":
            at += [torch.full_like(at[0], -math.log(len(at[0])))] * (len(rows) - len(at))
        if len(at) > 1:
            mean = sum(at) / len(at)
            c = [(mean - row).clamp(-11, 11) for row in at]
            found[t] = (sum((of_one.exp() - of_one - 1).sum() for of_one in c) / len(at)).item()
    low, high = min(found.values()), max(found.values())
    spread = high - low or 1.0  # one position that two reach
    return [[1 + (alpha - 1) * (found.get(t, low) - low) / spread for t in range(len(row))] for row in rows]


@pytest.mark.parametrize(
    ("kind", "padding"), [("mixed", "skip"), pytest.param("video", "release", marks=pytest.mark.slow)]
)
def test_weights_losses_and_gradients_are_the_papers(rows, make_trainer, kind, padding):
    settings = {**OBJECTIVES[kind], **TWO_UPDATES, "padding": padding}
    trainer = trained(build(make_trainer, rows[kind], TWGRPOTrainer, **settings))
    assert (trainer.args.loss_type, trainer.args.epsilon, trainer.args.epsilon_high) == ("grpo", 0.2, None)
    for step in (0, 1):
        update = Update(trainer, rows[kind], step)
        sampled = update.read(update.sampled_with)
        size = update.size
        groups = [sampled[i : i + size] for i in range(0, len(sampled), size)]
        weights = [of_one for group in groups for of_one in group_weights(group, 1.7, padding)]
        assert max(max(of_one) for of_one in weights) == pytest.approx(1.7)
        update.assert_weights(weights)
        pairs = zip(update.advantages(), weights, strict=True)
        now = update.read(update.weights, grad=True)
        terms = policy_terms(update, now, sampled, [[a * w for w in of_one] for a, of_one in pairs])
        assert size_of(terms) > 0.01
        update.assert_losses(terms)


@pytest.mark.slow  # tests/trainers/test_neutral_settings.py is the fast one
def test_the_neutral_setting_is_grpo(rows, make_trainer):
    assert_neutral(make_trainer, rows["mixed"], TWGRPOTrainer, {"alpha": 1.0}, {"alpha": 3.0})


@pytest.mark.parametrize("bad", [{"alpha": -0.1}, {"padding": "none"}], ids=str)
def test_settings_out_of_range_are_refused_by_name(tmp_path, bad):
    assert_refused(tmp_path, TWGRPOTrainer, bad, next(iter(bad)))


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_runs(rows, make_trainer, run):
    assert_runs(make_trainer, rows, TWGRPOTrainer, run, "tw_grpo/divergence_mean")
