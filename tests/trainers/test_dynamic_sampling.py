"""Groups without a spread of rewards are replaced by groups of other prompts."""

import os
import re
import subprocess
import sys

import pytest
import torch
from datasets import Dataset

from tests.helpers import history, message
from trl_perception.batch import MicroBatch, Rollout
from trl_perception.media import PreparedPrompt
from trl_perception.trainers import GRPOVideoTrainer, PGPOTrainer
from trl_perception.trainers.dynamic_sampling import drawn_rows, replaced, without_spread


def rollout(rewards, left_out=()):
    count = len(rewards)
    prompts = [
        PreparedPrompt({}, [], [], [], visual=None, left_out="cut" if i in left_out else None) for i in range(count)
    ]
    ids = {"prompt_ids": [[9, i] for i in range(count)], "completion_ids": [[i] for i in range(count)]}
    return Rollout([{"n": i} for i in range(count)], prompts, torch.zeros(count), torch.tensor(rewards), **ids)


def test_equal_sums_are_without_spread():
    # groups of 2, weights 1 and 0.5. Group 0: 1 + 0 and 0.5 + 0.5 = 1: equal sums. Group 1: 1 and 0. Group 2: the second
    # reward does not apply: 0 and 0. Group 3 has a spread, and is left out.
    rewards = [[1, 0], [0.5, 1], [1, 0], [0, 0], [0, float("nan")], [0, float("nan")], [1, 0], [0, 0]]
    assert without_spread(rollout(rewards, left_out=[6, 7]), torch.tensor([1.0, 0.5]), 2) == [0, 2, 3]


def test_draws_are_distinct_over_processes_and_repeat():
    seed = (42, 3, 7, 1)
    drawn = [drawn_rows(20, 4, process, 3, seed) for process in range(3)]
    assert len({row for of_one in drawn for row in of_one}) == 12
    assert drawn[1] == drawn_rows(20, 4, 1, 3, seed)
    assert drawn[1] != drawn_rows(20, 4, 1, 3, (42, 3, 7, 2))
    assert sorted(drawn_rows(3, 6, 0, 1, seed)) == [0, 0, 1, 1, 2, 2]  # fewer rows than are wanted


def test_a_group_takes_the_place_of_another():
    old = rollout([[1.0], [1.0], [0.0], [1.0]])
    old_output = {
        "prompt_ids": torch.tensor([[1, 2]] * 4),
        "completion_ids": torch.tensor([[3], [4], [5], [6]]),
        "completion_mask": torch.ones(4, 1, dtype=torch.long),
        "advantages": torch.tensor([0.0, 0.0, -1.0, 1.0]),
        "num_items_in_batch": torch.tensor(4),
    }
    new = rollout([[0.0], [0.5], [0.0], [2.0]])
    new_output = {
        "prompt_ids": torch.tensor([[7, 8, 9]] * 4),
        "completion_ids": torch.tensor([[10, 11], [12, 13], [14, 15], [16, 17]]),
        "completion_mask": torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]]),
        "advantages": torch.tensor([-2.0, 2.0, -3.0, 3.0]),
        "tool_mask": torch.tensor([[1, 1], [1, 1], [1, 0], [1, 1]]),
    }
    padding = {"prompt_ids": 99, "completion_ids": 98, "tool_mask": 1}
    mixed, output = replaced((old, MicroBatch(old_output)), (new, MicroBatch(new_output)), [(0, 1)], 2, padding)
    assert output["prompt_ids"].tolist() == [[7, 8, 9], [7, 8, 9], [99, 1, 2], [99, 1, 2]]
    assert output["completion_ids"].tolist() == [[14, 15], [16, 17], [5, 98], [6, 98]]
    assert output["completion_mask"].tolist() == [[1, 1], [1, 1], [1, 0], [1, 0]]
    assert output["tool_mask"].tolist() == [[1, 0], [1, 1], [1, 1], [1, 1]]  # none before: everything was trained on
    assert output["advantages"].tolist() == [-3, 3, -1, 1]
    assert mixed.prompts == [*new.prompts[2:], *old.prompts[2:]]
    assert mixed.rewards_per_func[:, 0].tolist() == [0, 2, 0, 1]
    assert mixed.rows == [{"n": 2}, {"n": 3}, {"n": 2}, {"n": 3}]
    assert mixed.prompt_ids == [[9, 2], [9, 3], [9, 2], [9, 3]]
    assert mixed.completion_ids == [[2], [3], [2], [3]]


def flat_on_red(prompts, completions, **columns):
    """No spread on prompts with "red": 0 0; else 0 1."""
    return [float(i % 2) * ("red" not in str(prompt)) for i, prompt in enumerate(prompts)]


def texts(*words):
    return [{"prompt": message(f"Say {word}."), "videos": [], "images": []} for word in words]


def test_training_continues_with_refilled_groups(make_trainer, rows):
    dataset = [*texts("red", "red", "red"), *rows["video"][:3]]
    config = {"num_generations": 2, "per_device_train_batch_size": 4, "max_steps": 3, "reward": flat_on_red}
    plain = make_trainer(dataset, **config)
    plain.train()
    filled = make_trainer(dataset, dynamic_sampling=True, dynamic_sampling_rounds=10, **config)
    filled.train()
    (zero,) = history(plain, "frac_reward_zero_std")
    assert max(zero) > 0
    refilled, left, rounds = history(
        filled, "dynamic_sampling/refilled", "dynamic_sampling/left", "dynamic_sampling/rounds"
    )
    assert sum(refilled) >= 1
    assert left == [0, 0, 0]
    assert all(1 <= count <= 10 for count, new in zip(rounds, refilled, strict=True) if new)
    (norms,) = history(filled, "grad_norm")
    assert all(norm > 0 for norm in norms)


def test_every_advantage_counts_after_a_refill(make_trainer, rows):
    class Kept(PGPOTrainer):
        def _compute_loss(self, model, inputs):
            loss = super()._compute_loss(model, inputs)
            self.seen = [*getattr(self, "seen", []), inputs]
            return loss

    dataset = [*texts("red", "red", "red"), *rows["video"][:2]]
    config = {"num_generations": 2, "per_device_train_batch_size": 4, "max_steps": 4, "reward": flat_on_red}
    trainer = make_trainer(dataset, cls=Kept, dynamic_sampling=True, dynamic_sampling_rounds=20, **config)
    trainer.train()
    for inputs in trainer.seen:
        assert (inputs["advantages"].abs().amax(1) > 0.5).all()
        trained = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        assert inputs["num_items_in_batch"] == trained.sum()
        assert inputs["token_weights"].shape == inputs["completion_ids"].shape


def test_without_other_prompts_the_rounds_end(make_trainer):
    trainer = make_trainer(
        texts("red", "red and red"), dynamic_sampling=True, dynamic_sampling_rounds=2, max_steps=1, reward=flat_on_red
    )
    trainer.train()
    assert history(trainer, "dynamic_sampling/rounds", "dynamic_sampling/left") == [[2], [1]]


def test_a_sample_that_is_left_out_is_replaced(make_trainer, rows):
    broken = {"prompt": message("?", "video"), "videos": ["/nowhere.mp4"], "images": []}
    config = {"on_bad_media": "skip", "max_steps": 2, "num_generations": 2, "per_device_train_batch_size": 4}
    trainer = make_trainer(
        [broken, broken, *rows["video"]],
        dynamic_sampling=True,
        dynamic_sampling_rounds=20,
        reward=flat_on_red,
        **config,
    )
    with pytest.warns(UserWarning, match="nowhere"):
        trainer.train()
    assert history(trainer, "dynamic_sampling/left") == [[0, 0]]


def test_what_cannot_be_refilled_is_refused(make_trainer, rows):
    with pytest.raises(ValueError, match="scale_rewards='batch'"):
        make_trainer(rows["text"], dynamic_sampling=True, scale_rewards="batch")
    # Groups 1 1 and 0 1: TRL divides their +-0.71 by the spread of all four, 0.58. A group 0 1 that is sampled alone in place
    # of the first has a spread of 1: the same rewards would be worth 1.22 in one group and 0.71 in the other.
    with pytest.raises(ValueError, match="multi_objective_aggregation='normalize_then_sum'"):
        make_trainer(rows["text"], dynamic_sampling=True, multi_objective_aggregation="normalize_then_sum")
    with pytest.raises(ValueError, match="dynamic_sampling_rounds is 0"):
        make_trainer(rows["text"], dynamic_sampling_rounds=0)
    streamed = Dataset.from_list(rows["text"]).to_iterable_dataset()
    config = GRPOVideoTrainer.config_class("out", dynamic_sampling=True, use_cpu=True, bf16=False, max_steps=1)
    with pytest.raises(ValueError, match="IterableDataset"):
        GRPOVideoTrainer("tiny", flat_on_red, config, streamed)


@pytest.mark.slow
def test_two_processes_sample_the_same_rounds(tmp_path):
    """The processes lack different numbers of groups; both make the same calls, and the run ends."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    options = {
        "config": "grpo/tiny",
        "output_dir": tmp_path / "run",
        "max_steps": 2,
        "per_device_train_batch_size": 16,
        "dynamic_sampling": "true",
        "dynamic_sampling_rounds": 12,
        "disable_tqdm": "true",
        "use_cpu": "true",
    }
    flags = [str(text) for key, value in options.items() for text in (f"--{key}", value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRL_PERCEPTION_CACHE": str(tmp_path / "cache")}
    run = subprocess.run(
        [*launch, "-m", "trl_perception.train", *flags],
        env=environment, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    logged = {
        name: [float(x) for x in re.findall(rf"'dynamic_sampling/{name}': '?([0-9.]+)", run.stdout)]
        for name in ("rounds", "refilled", "left")
    }
    assert len(logged["rounds"]) == 2
    assert sum(logged["refilled"]) > 0
    assert logged["left"] == [0, 0]
