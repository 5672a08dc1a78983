"""APPOTrainer: its weights and losses against the paper's formulas, its options, and what a run with it is."""

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
    assert_neutral,
    assert_refused,
    assert_runs,
    build,
    default_path,
    Eager,
    outcome,
    policy_terms,
    size_of,
    spread_reward,
    weights_of,
)
from trl_perception import APPOTrainer, GRPOVideoTrainer

# Few enough tokens and frames that they are chosen: completions have at most 8 tokens, a clip 4 frames.
CHOOSY = {"attention_layers": 2, "top_tokens": 3, "top_frames": 2, "tokens_per_frame": 3}


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_weights_losses_and_gradients_are_the_papers(rows, make_trainer, kind):
    trainer = build(make_trainer, rows[kind], APPOTrainer, **OBJECTIVES[kind], **TWO_UPDATES, **CHOOSY)
    trainer.train()
    for step in (0, 1):
        update = Update(trainer, rows[kind], step)
        sampled, now = update.read(update.sampled_with), update.read(update.weights, grad=True)
        weights = []
        for start in range(0, len(sampled), update.size):
            group = sampled[start : start + update.size]
            # 1 0 1 0 within the rollout: every other completion of a group succeeds
            weights += appo_weights(group, [1.0, 0.0] * (update.size // 2), 0.8, **CHOOSY)
        assert max(max(of_one) for of_one in weights) > 1.2
        update.assert_weights(weights)
        pairs = zip(update.advantages(), weights, strict=True)
        terms = policy_terms(update, now, sampled, [[a * w for w in of_one] for a, of_one in pairs])
        assert size_of(terms) > 0.01
        update.assert_losses(terms)
    assert update.args.loss_type == "dapo"
    assert (update.args.epsilon, update.args.epsilon_high) == (0.2, 0.28)


OPTIONS = {
    "one layer": {"attention_layers": 1},
    "one token a vote": {"top_tokens": 1},
    "one frame a vote": {"top_frames": 1},
    "more tokens a frame": {"tokens_per_frame": 5},
    "nobody fails": {"reward_threshold": 0.0, "strategy": "all"},
    "successes alone": {"strategy": "hard"},
    "every vote": {"strategy": "all"},
    "stronger": {"alpha": 1.7},
    "the release's divergence": {"divergence": "release"},
    "divided by frames": {"normalizer": "frames"},
}


def test_each_option_changes_the_weights_as_the_paper_says(rows, make_trainer):
    # two clips of 4 cells and a picture: 9 frames
    row = rows["several"][0]
    trainer = build(make_trainer, [row], APPOTrainer, max_steps=1, learning_rate=0.0, temperature=0.8, **CHOOSY)
    trainer.train()
    (group,) = trainer.groups
    eager = Eager(default_path(make_trainer), weights_of(trainer.model))
    ids = [row[mask].tolist() for row, mask in zip(group.completion_ids, group.completion_mask, strict=True)]
    readings = [eager.read(row, completion) for completion in ids]
    plain = trainer.token_weights(group).weights
    for name, option in OPTIONS.items():
        for key, value in {**CHOOSY, "strategy": "soft", "alpha": 0.7, **option}.items():
            setattr(trainer.args, key, value)
        weights = trainer.token_weights(group).weights
        expected = appo_weights(readings, [1.0, 0.0, 1.0, 0.0], 0.8, **{**CHOOSY, **option})
        for got, wanted in zip(weights, expected, strict=True):
            torch.testing.assert_close(got[: len(wanted)], torch.tensor(wanted), atol=1e-4, rtol=0, msg=name)
            assert not got[len(wanted) :].any()
        assert (weights - plain).abs().max() > 1e-3, name
        for key in option:
            setattr(trainer.args, key, type(trainer.args).__dataclass_fields__[key].default)
