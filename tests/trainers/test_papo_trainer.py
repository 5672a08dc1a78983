"""PAPOTrainer: losses and gradients against the paper's formula, its options, and runs."""

import pytest
import torch

from tests.helpers import history
from tests.trainers.reference import (
    OBJECTIVES,
    RUNS,
    TWO_UPDATES,
    Eager,
    Update,
    assert_neutral,
    assert_refused,
    assert_runs,
    build,
    k3,
    masked_readings,
    policy_terms,
    trained,
)
from trl_perception import PAPOTrainer

NEUTRAL = {"perception_weight": 0.0, "entropy_weight": 0.0, "masked_entropy_weight": 0.0}
STRONG = {"perception_weight": 0.5, "entropy_weight": 0.3, "masked_entropy_weight": 0.2}  # compared to 1e-4
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("kind", "mask", "gradient"),
    [
        ("mixed", "frames", False),
        pytest.param("video", "tube", False, marks=SLOW),
        pytest.param("mixed", "tube", True, marks=SLOW),
        pytest.param("video", "frames", True, marks=SLOW),
    ],
)
def test_losses_and_gradients_are_the_papers(rows, make_trainer, kind, mask, gradient):
    settings = {**OBJECTIVES[kind], **TWO_UPDATES, **STRONG, "mask": mask, "masked_gradient": gradient}
    trainer = trained(build(make_trainer, rows[kind], PAPOTrainer, **settings))
    assert (trainer.args.loss_type, trainer.args.epsilon, trainer.args.epsilon_high) == ("dapo", 0.2, 0.28)
    for step in (0, 1):
        update = Update(trainer, rows[kind], step)
        sampled = update.read(update.sampled_with)
        masked = None if gradient else masked_readings(update, 0.6, mask)
        eager = Eager(update.path, update.weights)
        now = [eager.read(completion.row, completion.ids, grad=True) for completion in update.completions]
        if gradient:
            view = {"patches": (update.args.seed, update.sampled_at, 0.6, mask), "grad": True}
            masked = [eager.read(completion.row, completion.ids, **view) for completion in update.completions]
        values, size = [], 0.0
        for completion, shown, hidden in zip(update.completions, now, masked, strict=True):
            own = shown.logps(0.8)
            media = completion.row["videos"] or completion.row["images"]
            others = hidden.logps(0.8) if media else [logp.detach() for logp in own]
            pairs = list(zip(own, others, strict=True))
            values.append([-0.5 * k3(logp, other, 10) - 0.3 * logp - 0.2 * other for logp, other in pairs])
            size += sum(k3(*pair, 10).item() for pair in pairs)
        assert size > 1  # the masked media matter
        credit = [[a] * len(of_one.ids) for a, of_one in zip(update.advantages(), now, strict=True)]
        update.assert_losses(policy_terms(update, now, sampled, credit), update.mean_over_tokens(values))


@pytest.mark.slow
def test_the_masked_media_are_scored_once_a_rollout(rows, make_trainer):
    settings = {**OBJECTIVES["video"], **TWO_UPDATES, "max_steps": 4}
    trainer = trained(build(make_trainer, rows["video"], PAPOTrainer, **settings))
    assert len(trainer.views) == 2  # rollouts of one group
    first, _, again, _ = trainer.seen[:4]
    assert all(map(torch.equal, first.inputs["masked_logps"], again.inputs["masked_logps"]))


@pytest.mark.slow  # tests/trainers/test_neutral_settings.py is the fast one
def test_the_neutral_setting_is_grpo(rows, make_trainer):
    assert_neutral(make_trainer, rows["mixed"], PAPOTrainer, NEUTRAL, {"entropy_weight": 1.0})


def test_the_neutral_setting_masks_nothing(rows, make_trainer):
    trainer = trained(build(make_trainer, rows["video"], PAPOTrainer, **NEUTRAL, max_steps=1))
    assert trainer.views == []


def test_text_prompts_have_the_entropy_term_alone(rows, make_trainer):
    trainer = trained(build(make_trainer, rows["text"], PAPOTrainer, num_generations=2, max_steps=1))
    assert trainer.views == []
    kl, shown, masked = history(trainer, "papo/kl", "papo/entropy", "papo/entropy_masked")
    assert kl == [0.0]
    assert shown == masked


@pytest.mark.parametrize(
    "bad", [{name: -0.1} for name in NEUTRAL] + [{"mask_probability": 1.1}, {"mask": "cells"}], ids=str
)
def test_settings_out_of_range_are_refused_by_name(tmp_path, bad):
    assert_refused(tmp_path, PAPOTrainer, bad, next(iter(bad)))


@pytest.mark.slow
@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("run", RUNS)
def test_runs(rows, make_trainer, run, gradient):
    assert_runs(make_trainer, rows, PAPOTrainer, run, "papo/kl", masked_gradient=gradient)
