"""APPOTrainer: weights, losses and gradients against the paper's formulas, its options, and runs."""

import pytest
import torch

from tests.helpers import history
from tests.trainers.reference import (
    OBJECTIVES,
    RUNS,
    TWO_UPDATES,
    Update,
    accuracy_reward,
    appo_weights,
    asked_again,
    assert_group_weights,
    assert_neutral,
    assert_refused,
    assert_runs,
    build,
    default_path,
    groups_of,
    outcome,
    policy_terms,
    read_group,
    shaken,
    size_of,
    spread_reward,
    trained,
)
from trl_perception import APPOTrainer, GRPOVideoTrainer

# Few enough that tokens and frames have to be chosen: completions have at most 8 tokens, a clip has 4 frames.
CHOOSY = {"attention_layers": 2, "top_tokens": 3, "top_frames": 2, "tokens_per_frame": 3}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_weights_losses_and_gradients_are_the_papers(rows, make_trainer, kind):
    trainer = trained(build(make_trainer, rows[kind], APPOTrainer, **OBJECTIVES[kind], **TWO_UPDATES, **CHOOSY))
    assert (trainer.args.loss_type, trainer.args.epsilon, trainer.args.epsilon_high) == ("dapo", 0.2, 0.28)
    for step in (0, 1):
        update = Update(trainer, rows[kind], step)
        sampled, now = update.read(update.sampled_with), update.read(update.weights, grad=True)
        weights = []
        for start in range(0, len(sampled), update.size):
            group = sampled[start : start + update.size]
            # 1 0 1 0 over the rollout: every other completion of a group succeeds
            weights += appo_weights(group, [1.0, 0.0] * (update.size // 2), 0.8, **CHOOSY)
        assert max(max(of_one) for of_one in weights) > 1.2
        update.assert_weights(weights)
        pairs = zip(update.advantages(), weights, strict=True)
        terms = policy_terms(update, now, sampled, [[a * w for w in of_one] for a, of_one in pairs])
        assert size_of(terms) > 0.01
        update.assert_losses(terms)


OPTIONS = {
    "one layer": {"attention_layers": 1},
    "one token a vote": {"top_tokens": 1},
    "one frame a vote": {"top_frames": 1},
    "more tokens a frame": {"tokens_per_frame": 5},
    "everybody succeeds": {"reward_threshold": 0.0},
    "nobody succeeds": {"reward_threshold": 1.5},
    "votes of successes alone": {"strategy": "hard"},
    "every vote": {"strategy": "all"},
    "stronger": {"alpha": 1.7},
    "divergence of the release": {"divergence": "release"},
    "uniform where ranks are missing": {"missing_ranks": "uniform"},
    "every vote where nobody succeeds": {"strategy": "soft_or_all", "reward_threshold": 1.5},
    "divided by frames": {"normalizer": "frames"},
}


def test_each_option_changes_the_weights_as_the_paper_says(rows, make_trainer):
    base = {**CHOOSY, "top_tokens": 8}
    model = shaken(default_path(make_trainer), size=0.25)  # so that each token attends to its own frames
    trainer, groups = groups_of(make_trainer, rows["several"], APPOTrainer, model=model, **base)
    readings = [read_group(trainer, group) for group in groups]
    plain = [trainer.token_weights(group).weights for group in groups]
    for name, option in {"as set": {}, **OPTIONS}.items():
        changed = 0.0
        for group, of_group, before in zip(groups, readings, plain, strict=True):
            credit = asked_again(trainer, group, option)
            assert_group_weights(credit, appo_weights(of_group, [1.0, 0.0] * 2, 0.8, **{**base, **option}), name)
            changed += (credit.weights - before).abs().max().item()
        assert (changed > 1e-2) == bool(option), name


def second_accuracy(completions, **columns):
    """0 1 0 1 ..."""
    return [float(i % 2 == 1) for i in range(len(completions))]


def test_the_accuracy_reward_alone_decides_and_can_be_named(rows, make_trainer):
    """Weights and scales of rewards change the advantage, but not which completions count as successes."""
    rewards = [spread_reward, accuracy_reward, second_accuracy]
    choosy, weights = {**CHOOSY, "top_frames": 1}, {}
    for name in ("accuracy_reward", "second_accuracy"):
        trainer, (group,) = groups_of(
            make_trainer,
            rows["several"][:1],
            APPOTrainer,
            reward=rewards,
            reward_weights=[5.0, 0.1, 0.1],
            accuracy_reward=name,
            **choosy,
        )
        successes = [1.0, 0.0, 1.0, 0.0] if name == "accuracy_reward" else [0.0, 1.0, 0.0, 1.0]
        credit = trainer.token_weights(group)
        weights[name] = credit.weights
        assert_group_weights(credit, appo_weights(read_group(trainer, group), successes, 0.8, **choosy))
        assert credit.metrics["appo/high_reward_frac"] == 0.5
    assert (weights["accuracy_reward"] - weights["second_accuracy"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("rewards", "named", "words"),
    [
        ([spread_reward], None, r"among the rewards \['spread_reward'\] none has accuracy in its name"),
        ([accuracy_reward, second_accuracy], None, "2 has accuracy in its name"),
        ([accuracy_reward], "precision", "none is 'precision'"),
    ],
)
def test_an_ambiguous_accuracy_reward_is_refused(rows, make_trainer, rewards, named, words):
    with pytest.raises(ValueError, match=f"{words}.*Set accuracy_reward"):
        make_trainer(rows["video"], cls=APPOTrainer, reward=rewards, accuracy_reward=named)


def accuracy_on_text_alone(completions, videos, images, **columns):
    return [None if seen else float(i % 2) for i, seen in enumerate(map(any, zip(videos, images, strict=True)))]


def test_an_accuracy_that_does_not_apply_to_a_row_with_media_is_refused(rows, make_trainer):
    settings = {"reward": [accuracy_on_text_alone, spread_reward], "max_steps": 1}
    trained(make_trainer(rows["text"], cls=APPOTrainer, **settings))
    with pytest.raises(ValueError, match=r"the reward 'accuracy_on_text_alone' returned None.*accuracy_reward"):
        trained(make_trainer(rows["video"], cls=APPOTrainer, **settings))


def test_alpha_0_is_grpo(rows, make_trainer):
    assert_neutral(make_trainer, rows["mixed"], APPOTrainer, {"alpha": 0.0}, {"alpha": 0.7, "tokens_per_frame": 3})


def no_accuracy(completions, **columns):
    return [0.0] * len(completions)


def test_without_a_success_it_trains_as_grpo_and_says_so(rows, make_trainer):
    shared = {"reward": [no_accuracy, spread_reward], "max_steps": 2, "loss_type": "dapo", "epsilon_high": 0.28}
    plain = outcome(make_trainer, rows["video"], GRPOVideoTrainer, **shared)
    for strategy in ("soft", "hard"):
        settings = {**shared, "strategy": strategy, "tokens_per_frame": 3, "gradient_checkpointing": False}
        trainer = make_trainer(rows["video"], cls=APPOTrainer, model=shaken(default_path(make_trainer)), **settings)
        trained(trainer)
        for mine, theirs in zip(history(trainer, "loss", "grad_norm"), plain, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-6)
        assert history(trainer, "appo/no_frame", "appo/frames_selected", "appo/weight_max") == [[1, 1], [0, 0], [1, 1]]


def test_text_prompts_keep_every_weight_at_one(rows, make_trainer):
    trainer = trained(build(make_trainer, rows["text"], APPOTrainer, num_generations=2, max_steps=1))
    assert trainer.seen[0].inputs.get("token_weights") is None
    assert trainer.views == []
    assert history(trainer, "appo/weight_mean") == [[]]


def test_signals_come_once_a_rollout_from_complete_groups(rows, make_trainer):
    trainer = trained(
        build(make_trainer, rows["video"], APPOTrainer, **OBJECTIVES["video"], **{**TWO_UPDATES, "max_steps": 4})
    )
    # 4 updates of 2 iterations are 2 rollouts, 4 completions each: a group, scored once
    assert len(trainer.seen) == 8
    assert [len(group.completion_ids) for group in trainer.groups] == [4, 4]
    assert trainer.views == [None, None]
    first, _, again, _ = trainer.seen[:4]
    assert torch.equal(first.inputs["token_weights"], again.inputs["token_weights"])


@pytest.mark.parametrize(
    "bad",
    [
        {"attention_layers": 0},
        {"top_tokens": 0},
        {"top_frames": -1},
        {"tokens_per_frame": 0},
        {"alpha": -0.1},
        {"strategy": "softer"},
        {"divergence": "js"},
        {"normalizer": "tokens"},
        {"missing_ranks": "pad"},
        {"preset": "draft"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(tmp_path, bad):
    assert_refused(tmp_path, APPOTrainer, bad, next(iter(bad)))


def test_the_preset_sets_what_is_not_set(tmp_path):
    """The release: force-all, K3 128, a success is any accuracy above 0, padded ranks, each process's own token mean."""

    def fields(**options):
        config = APPOTrainer.config_class(str(tmp_path), use_cpu=True, bf16=False, **options)
        return {name: getattr(config, name) for name in paper}

    paper = {
        "strategy": "soft", "tokens_per_frame": 64, "reward_threshold": 0.5, "divergence": "kl", "missing_ranks": "skip",
        "loss_type": "dapo", "alpha": 0.7, "top_tokens": 15, "top_frames": 3, "attention_layers": 3, "normalizer": "groups",
        "beta": 0.0, "epsilon": 0.2, "epsilon_high": 0.28,
    }  # fmt: skip
    release = {
        "strategy": "all", "tokens_per_frame": 128, "divergence": "release", "missing_ranks": "uniform", "loss_type": "bnpo",
    }  # fmt: skip
    assert fields() == fields(preset="paper") == paper
    found = fields(preset="release")
    assert 0 < found.pop("reward_threshold") < 1e-6
    assert found == {name: value for name, value in {**paper, **release}.items() if name != "reward_threshold"}
    assert fields(preset="release", strategy="soft", tokens_per_frame=512)["strategy"] == "soft"
    assert fields(preset="release", loss_type="dapo", reward_threshold=0.25)["reward_threshold"] == 0.25


def test_the_release_as_it_is_set_by_its_preset(rows, make_trainer):
    """Every option of the preset together, but K3, which covers these completions of at most eight tokens."""
    settings = {"preset": "release", "tokens_per_frame": 5, "top_frames": 2, "attention_layers": 2}
    trainer, groups = groups_of(make_trainer, rows["several"], APPOTrainer, **settings)
    options = {"strategy": "all", "divergence": "release", "missing_ranks": "uniform"}
    for group in groups:
        expected = appo_weights(
            read_group(trainer, group),
            [1.0, 0.0] * 2,
            0.8,
            tokens_per_frame=5,
            top_frames=2,
            attention_layers=2,
            **options,
        )
        assert_group_weights(trainer.token_weights(group), expected)


@pytest.mark.parametrize("run", RUNS)
def test_runs(rows, make_trainer, run):
    assert_runs(make_trainer, rows, APPOTrainer, run, "appo/weight_mean", tokens_per_frame=3)
