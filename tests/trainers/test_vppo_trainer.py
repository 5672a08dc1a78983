"""VPPOTrainer: weights, factors, losses and gradients against the paper's formulas, its options, and runs."""

import math

import pytest

from tests.helpers import history
from tests.trainers.reference import (
    OBJECTIVES,
    RUNS,
    TWO_UPDATES,
    Update,
    assert_neutral,
    assert_refused,
    assert_runs,
    build,
    k3,
    masked_readings,
    policy_terms,
    size_of,
    trained,
)
from trl_perception import VPPOTrainer

NEUTRAL = {"keep_ratio": 1.0, "sequence_factor": False, "entropy_penalty": 0.0}


def factors_of(scores):
    """f of the completions that are compared."""
    low, high = min(scores), max(scores)
    shares = [(score - low) / (high - low) for score in scores]
    most = 0.9 + 0.1 / (sum(shares) / len(shares))
    return [0.9 + share * (most - 0.9) for share in shares]


def weights_of_update(update, sampled, mask, statistics):
    """f_i m_t of each completion; None for one without media."""
    masked = masked_readings(update, 0.5, mask)
    dependencies = [
        [min(10.0, k3(*pair, 20).item()) for pair in zip(shown.logps(0.8), hidden.logps(0.8), strict=True)]
        for shown, hidden in zip(sampled, masked, strict=True)
    ]
    has_media = [bool(c.row["videos"] or c.row["images"]) for c in update.completions]
    scores = [sum(of_one) / len(of_one) for of_one in dependencies]
    factors = [1.0] * len(scores)
    size = update.size if statistics == "group" else len(scores)
    for start in range(0, len(scores), size):
        places = [i for i in range(start, start + size) if has_media[i]]
        for i, factor in zip(places, factors_of([scores[i] for i in places]) if places else [], strict=True):
            factors[i] = factor
    weights = []
    for dependency, factor, media in zip(dependencies, factors, has_media, strict=True):
        count = math.ceil(round(0.4 * len(dependency), 6))
        best = sorted(range(len(dependency)), key=lambda t, values=dependency: -values[t])[:count]
        weights.append([factor * (t in best) if media else 1.0 for t in range(len(dependency))])
    return weights


@pytest.mark.parametrize(
    ("kind", "mask", "statistics"),
    [
        ("mixed", "frames", "global"),
        pytest.param("mixed", "tube", "group", marks=pytest.mark.slow),
        pytest.param("video", "frames", "group", marks=pytest.mark.slow),
    ],
)
def test_weights_losses_and_gradients_are_the_papers(rows, make_trainer, kind, mask, statistics):
    settings = {**OBJECTIVES[kind], **TWO_UPDATES, "mask": mask, "statistics": statistics, "entropy_penalty": 0.5}
    trainer = trained(build(make_trainer, rows[kind], VPPOTrainer, **settings))
    assert (trainer.args.loss_type, trainer.args.epsilon, trainer.args.epsilon_high) == ("dapo", 0.2, 0.28)
    for step in (0, 1):
        update = Update(trainer, rows[kind], step)
        sampled = update.read(update.sampled_with)
        weights = weights_of_update(update, sampled, mask, statistics)
        update.assert_weights(weights)
        now = update.read(update.weights, grad=True)
        pairs = zip(update.advantages(), weights, strict=True)
        terms = policy_terms(update, now, sampled, [[a * w for w in of_one] for a, of_one in pairs])
        assert size_of(terms) > 0.01
        entropy = [[-0.5 * logp for logp in of_one.logps(0.8)] for of_one in now]
        update.assert_losses(terms, update.mean_over_tokens(entropy))


@pytest.mark.parametrize("statistics", [pytest.param("group", marks=pytest.mark.slow), "global"])
def test_how_a_step_is_cut_changes_nothing(rows, make_trainer, statistics):
    """16 rows of four groups as 16x1, 8x2 and 4x4: the release's factors would differ."""
    logs = []
    for size in (16, 8, 4) if statistics == "global" else (16, 4):
        cut = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 16 // size, "max_steps": 1}
        trainer = trained(build(make_trainer, rows["mixed"], VPPOTrainer, statistics=statistics, **cut))
        logs.append([history(trainer, name)[0] for name in ("loss", "grad_norm", "vppo/dependency_mean")])
    for other in logs[1:]:
        for mine, theirs in zip(logs[0], other, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6)


@pytest.mark.slow  # tests/trainers/test_neutral_settings.py is the fast one
def test_the_neutral_setting_is_grpo(rows, make_trainer):
    assert_neutral(make_trainer, rows["mixed"], VPPOTrainer, NEUTRAL, {"keep_ratio": 0.4})


def test_the_neutral_setting_masks_nothing(rows, make_trainer):
    trainer = trained(build(make_trainer, rows["video"], VPPOTrainer, **NEUTRAL, max_steps=1))
    assert trainer.views == []


def test_text_prompts_keep_every_weight_at_one(rows, make_trainer):
    settings = {"num_generations": 2, "max_steps": 1, "statistics": "global"}
    trainer = trained(build(make_trainer, rows["text"], VPPOTrainer, **settings))
    assert trainer.seen[0].inputs.get("token_weights") is None
    assert trainer.views == []


@pytest.mark.parametrize(
    "bad",
    [
        {"keep_ratio": 1.5},
        {"factor_floor": -0.1},
        {"mask_probability": -1.0},
        {"entropy_penalty": -0.1},
        {"statistics": "batch"},
        {"mask": "cells"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(tmp_path, bad):
    assert_refused(tmp_path, VPPOTrainer, bad, next(iter(bad)))


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["group", "global"])
@pytest.mark.parametrize("run", RUNS)
def test_runs(rows, make_trainer, run, statistics):
    assert_runs(make_trainer, rows, VPPOTrainer, run, "vppo/dependency_mean", statistics=statistics)
