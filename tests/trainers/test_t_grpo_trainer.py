"""TGRPOTrainer: the bonus against the paper's rule, its options, and runs."""

import pytest
import torch

from tests.helpers import history
from tests.trainers.reference import (
    RUNS,
    Update,
    assert_refused,
    assert_runs,
    build,
    outcome,
    policy_terms,
    spread_reward,
    trained,
)
from trl_perception import GRPOVideoTrainer, TGRPOTrainer


class Counting:
    """1 0 1 0 ... for the rollout; for completions under a view, which come first, what is given."""

    __name__ = "accuracy_reward"

    def __init__(self, *shuffled):
        self.shuffled = shuffled

    def __call__(self, completions, **columns):
        if len(completions) % 4:  # 2 of each of the videos
            return [self.shuffled[i % 2] for i in range(len(completions))]
        return [float(i % 2 == 0) for i in range(len(completions))]


SETTINGS = {"num_generations": 4, "per_device_train_batch_size": 4, "temperature": 0.8, "max_steps": 1}


@pytest.mark.parametrize(("shuffled", "earned"), [((0.0, 1.0), 0.3), ((1.0, 1.0), 0.0)])
def test_advantages_losses_and_gradients_are_the_papers(rows, make_trainer, shuffled, earned):
    """Accuracy 1/2 in order: at least 0.8 * 1/2, but less than 0.8 * 1."""
    reward = [Counting(*shuffled), spread_reward]
    trainer = trained(build(make_trainer, rows["video"], TGRPOTrainer, reward=reward, **SETTINGS))
    assert (trainer.args.loss_type, trainer.args.shuffled_generations) == ("grpo", 2)
    update = Update(trainer, rows["video"], 0)
    # 1 + b + 0, 0 + .5, 1 + b + 1, 0 + 1.5
    rewards = torch.tensor([1.0 + earned, 0.5, 2.0 + earned, 1.5], dtype=torch.float64)
    advantages = ((rewards - rewards.mean()) / (rewards.std() + 1e-4)).tolist()
    now = update.read(update.weights, grad=True)
    credit = [[a] * len(of_one.ids) for a, of_one in zip(advantages, now, strict=True)]
    update.assert_losses(policy_terms(update, now, now, credit))
    metrics = history(trainer, *(f"t_grpo/{name}" for name in ("ordered_accuracy", "shuffled_accuracy", "bonus_frac")))
    assert metrics == [[0.5], [sum(shuffled) / 2], [0.5 if earned else 0.0]]


def test_only_videos_have_a_second_group(rows, make_trainer):
    sizes = []

    def accuracy(completions, **columns):
        sizes.append(len(completions))
        return [1.0] * len(completions)

    settings = {**SETTINGS, "per_device_train_batch_size": 16, "shuffled_generations": 3}
    trained(build(make_trainer, rows["mixed"], TGRPOTrainer, reward=accuracy, accuracy_reward="accuracy", **settings))
    assert sizes == [6, 16]  # two of four prompts have a video


@pytest.mark.slow  # tests/trainers/test_neutral_settings.py is the fast one
def test_the_neutral_setting_is_grpo_and_samples_nothing_more(rows, make_trainer):

    def steep(completions, **columns):  # 1 + 0 < 0 + 2, and with the bonus 4 > 2
        return [float(i % 2) * 2 for i in range(len(completions))]

    settings = {"reward": [Counting(0.0, 1.0), steep], "num_generations": 2, "learning_rate": 3e-5, "max_steps": 3}
    settings |= {"loss_type": "grpo", "num_iterations": 2}
    grpo = outcome(make_trainer, rows["video"], GRPOVideoTrainer, **settings)
    same, other = (
        outcome(make_trainer, rows["video"], TGRPOTrainer, temporal_bonus=bonus, **settings) for bonus in (0.0, 3.0)
    )
    for mine, theirs in zip(same, grpo, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-6, rel=1e-6)
    assert other[0][1] != pytest.approx(grpo[0][1], abs=1e-4)


@pytest.mark.parametrize(
    "bad",
    [{"temporal_bonus": -0.1}, {"temporal_margin": -1.0}, {"correct_above": -0.1}, {"shuffled_generations": 0}],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(tmp_path, bad):
    assert_refused(tmp_path, TGRPOTrainer, bad, next(iter(bad)))


def test_an_unclear_accuracy_is_refused(rows, make_trainer):
    with pytest.raises(ValueError, match=r"T-GRPO needs the accuracy reward alone.*none has accuracy in its name"):
        make_trainer(rows["video"], cls=TGRPOTrainer)


@pytest.mark.slow
@pytest.mark.parametrize("run", [run for run in RUNS if run != "images"])
def test_runs(rows, make_trainer, run):
    assert_runs(make_trainer, rows, TGRPOTrainer, run, "t_grpo/bonus_frac")
