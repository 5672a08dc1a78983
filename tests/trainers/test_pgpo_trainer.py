"""PGPOTrainer: weights, losses and gradients against the paper's formulas, its options, and runs."""

import pytest
import torch

from tests.helpers import history
from tests.trainers.reference import (
    OBJECTIVES,
    RUNS,
    TWO_UPDATES,
    Update,
    asked_again,
    assert_group_weights,
    assert_neutral,
    assert_refused,
    assert_runs,
    build,
    groups_of,
    pgpo_weights,
    policy_terms,
    read_group,
    size_of,
    trained,
)
from trl_perception import PGPOTrainer

NEUTRAL = {"visual_boost": 0.0, "dependency_threshold": 0.0, "conserve_mass": False}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_weights_losses_and_gradients_are_the_papers(rows, make_trainer, kind):
    trainer = trained(build(make_trainer, rows[kind], PGPOTrainer, **OBJECTIVES[kind], **TWO_UPDATES))
    assert (trainer.args.loss_type, trainer.args.epsilon, trainer.args.epsilon_high) == ("dapo", 0.2, 0.28)
    for step in (0, 1):
        update = Update(trainer, rows[kind], step)
        sampled, weights = update.read(update.sampled_with), []
        for with_media, completion in zip(sampled, update.completions, strict=True):
            media = completion.row["videos"] or completion.row["images"]
            (media_masked,) = update.read(update.sampled_with, [completion], media_masking="mask") if media else (None,)
            weights.append(pgpo_weights(with_media, media_masked, 0.8))
            assert sum(weights[-1]) == pytest.approx(len(completion.ids), rel=1e-6)  # mass conserved
        assert max(max(of_one) for of_one in weights) > 1.5
        update.assert_weights(weights)
        pairs = zip(update.advantages(), weights, strict=True)
        now = update.read(update.weights, grad=True)
        terms = policy_terms(update, now, sampled, [[a * w for w in of_one] for a, of_one in pairs])
        assert size_of(terms) > 0.01
        update.assert_losses(terms)


OPTIONS = {
    "exact divergence": {"dependency": "kl"},
    "literal paper": {"dependency_clamp": None},
    "tighter clamp": {"dependency_clamp": 0.05},
    "higher threshold": {"dependency_threshold": 0.8},
    "median threshold": {"dependency_threshold": 0.5, "threshold_mode": "quantile"},
    "weaker boost": {"visual_boost": 0.5},
    "floor": {"weight_floor": 0.6},
    "free mass": {"conserve_mass": False},
    "cap": {"max_weight": 1.2},
    "neutral": NEUTRAL,
}


def test_each_option_changes_the_weights_as_the_paper_says(rows, make_trainer):
    trainer, groups = groups_of(make_trainer, rows["several"], PGPOTrainer, dependency_clamp=1.0)
    readings = [
        list(zip(read_group(trainer, g), read_group(trainer, g, media_masking="mask"), strict=True)) for g in groups
    ]
    plain = [trainer.token_weights(group).weights for group in groups]
    for name, option in {"as set": {}, **OPTIONS}.items():
        changed = 0.0
        for group, of_group, before in zip(groups, readings, plain, strict=True):
            credit = asked_again(trainer, group, option)
            settings = {"dependency_clamp": 1.0, **option}
            assert_group_weights(credit, [pgpo_weights(*pair, 0.8, **settings) for pair in of_group], name)
            changed += (credit.weights - before).abs().max().item()
        assert (changed > 1e-2) == bool(option), name


def test_exact_dependency_is_the_divergence_of_the_logits(rows, make_trainer):
    trainer, (group, *_) = groups_of(make_trainer, rows["several"], PGPOTrainer, dependency="kl")
    values = []
    for with_media, media_masked in zip(
        read_group(trainer, group), read_group(trainer, group, media_masking="mask"), strict=True
    ):
        for seen, unseen in zip(with_media.logits / 0.8, media_masked.logits / 0.8, strict=True):
            log_p, log_q = torch.log_softmax(seen, -1), torch.log_softmax(unseen, -1)
            values.append(sum((log_p[v].exp() * (log_p[v] - log_q[v])).item() for v in range(len(log_p))))
    credit = asked_again(trainer, group, {})
    assert credit.metrics["pgpo/dependency_mean"].item() == pytest.approx(sum(values) / len(values), abs=1e-4)
    assert min(values) > 1e-3


def test_the_media_masked_view_does_not_depend_on_what_the_video_shows(rows, make_trainer):
    """Another clip of the same size in the same place: the scores with media change, the media-masked ones are bitwise equal."""
    trainer, (group, *_) = groups_of(make_trainer, rows["video"][:1], PGPOTrainer)
    trainer.views.clear()
    trainer.token_weights(group)
    with_media, media_masked = trainer.views
    other = trainer._prompt_preparer([rows["video"][1]])[0].visual
    scores = [trainer.score(group, view)[0] for view in (media_masked, type(media_masked)(group.prompt_ids, other))]
    assert with_media is None
    assert media_masked.visual.visual_tokens == 0
    assert len(media_masked.prompt_ids) == len(group.prompt_ids) - group.visual.visual_tokens
    assert (trainer.score(group)[0] - scores[1]).abs().max() > 1e-3
    assert torch.equal(trainer.score(group, media_masked)[0], scores[0])


def test_the_neutral_setting_is_grpo(rows, make_trainer):
    assert_neutral(make_trainer, rows["mixed"], PGPOTrainer, NEUTRAL, {})


def test_text_prompts_keep_every_weight_at_one(rows, make_trainer):
    trainer = trained(build(make_trainer, rows["text"], PGPOTrainer, num_generations=2, max_steps=1))
    assert trainer.seen[0].inputs.get("token_weights") is None
    assert trainer.views == []
    assert history(trainer, "pgpo/weight_max") == [[]]


def test_signals_come_once_a_rollout_from_complete_groups(rows, make_trainer):
    trainer = trained(
        build(make_trainer, rows["video"], PGPOTrainer, **OBJECTIVES["video"], **{**TWO_UPDATES, "max_steps": 4})
    )
    # 4 updates of 2 iterations are 2 rollouts of a group each, scored with media and media-masked
    assert len(trainer.seen) == 8
    assert [len(group.completion_ids) for group in trainer.groups] == [4, 4]
    assert [view is None for view in trainer.views] == [True, False] * 2
    first, _, again, _ = trainer.seen[:4]
    assert torch.equal(first.inputs["token_weights"], again.inputs["token_weights"])


@pytest.mark.parametrize(
    "bad",
    [
        {"dependency": "k2"},
        {"threshold_mode": "mean"},
        {"dependency_threshold": 1.1},
        {"dependency_threshold": -0.1},
        {"visual_boost": -1.0},
        {"weight_floor": -0.1},
        {"dependency_clamp": 0.0},
        {"max_weight": -1.0},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(tmp_path, bad):
    assert_refused(tmp_path, PGPOTrainer, bad, next(iter(bad)))


@pytest.mark.parametrize("run", RUNS)
def test_runs(rows, make_trainer, run):
    assert_runs(make_trainer, rows, PGPOTrainer, run, "pgpo/dependency_mean")
