"""Groups stay complete through TRL's shuffle and between processes."""

import pytest
import torch

from trl_perception import GRPOVideoConfig, GRPOVideoTrainer
from trl_perception.batch import whole_groups


def test_whole_groups_by_hand():
    # Rollout rows 0 1 | 2 3 | 4 5 are three groups of two. The shuffle gave 3 4 0 | 5 1 2: group 1 arrived first
    # (row 3), then group 2 (row 4), then group 0. In order within the group: 2 3 4 | 5 0 1.
    batches = [
        {"row": torch.tensor([3, 4, 0]), "name": ["d", "e", "a"], "x": torch.tensor([[3.0], [4.0], [0.0]])},
        {"row": torch.tensor([5, 1, 2]), "name": ["f", "b", "c"], "x": torch.tensor([[5.0], [1.0], [2.0]])},
    ]
    for batch in batches:
        batch.update(scale=torch.tensor(7.0), absent=None)
    first, second = whole_groups(batches, num_generations=2)
    assert first["row"].tolist() == [2, 3, 4]
    assert second["row"].tolist() == [5, 0, 1]
    assert first["name"] + second["name"] == ["c", "d", "e", "f", "a", "b"]
    assert torch.cat([first["x"], second["x"]])[:, 0].tolist() == [2.0, 3.0, 4.0, 5.0, 0.0, 1.0]
    assert first["scale"] == second["scale"] == 7.0
    assert first["absent"] is None


class Batches(GRPOVideoTrainer):
    def __init__(self, *args, **kwargs):
        self.batches = []
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model, inputs):
        self.batches.append(inputs)
        return super()._compute_loss(model, inputs)


def test_micro_batches_hold_whole_groups_in_varying_order(rows, make_trainer):
    trainer = make_trainer(
        rows["video"], cls=Batches, num_generations=2, gradient_accumulation_steps=2, max_steps=6, num_iterations=2
    )
    trainer.train()
    orders = set()
    for first, second in zip(trainer.batches[::2], trainer.batches[1::2], strict=True):
        order = first["row"].tolist() + second["row"].tolist()
        assert sorted(order) == list(range(8))
        assert all(order[i] // 2 == order[i + 1] // 2 for i in range(0, 8, 2))
        for batch in (first, second):
            assert batch["visual_inputs"][0] is batch["visual_inputs"][1]
            assert torch.equal(batch["prompt_ids"][0], batch["prompt_ids"][1])
        orders.add(tuple(order))
    assert len(orders) > 1


def test_a_batch_that_splits_groups_between_processes_is_refused(tmp_path, monkeypatch):
    """Two processes of six completions make three groups of four, and the second group would be cut in two."""
    monkeypatch.setattr(GRPOVideoConfig, "world_size", 2)
    with pytest.raises(ValueError, match=r"samples 6 completions .* multiple of num_generations \(4\).*Set per_device"):
        GRPOVideoConfig(str(tmp_path), per_device_train_batch_size=6, num_generations=4, use_cpu=True, bf16=False)
    GRPOVideoConfig(str(tmp_path), per_device_train_batch_size=8, num_generations=4, use_cpu=True, bf16=False)


@pytest.mark.parametrize("schedule", [{}, {"gradient_accumulation_steps": 3}, {"steps_per_generation": 1}])
def test_generations_that_do_not_divide_the_batch_are_refused(tmp_path, schedule):
    """6, 18 and 6 completions at a time, groups of 4. TRL's own error names generation_batch_size, which was not set."""
    with pytest.raises(
        ValueError, match=r"samples (6|18) completions .*multiple of num_generations \(4\).*Set per_device"
    ):
        GRPOVideoConfig(
            str(tmp_path), per_device_train_batch_size=6, num_generations=4, use_cpu=True, bf16=False, **schedule
        )
    with pytest.raises(ValueError, match=r"generation_batch_size \(6\) must be divisible by num_generations \(4\)"):
        GRPOVideoConfig(
            str(tmp_path),
            per_device_train_batch_size=6,
            generation_batch_size=6,
            num_generations=4,
            use_cpu=True,
            bf16=False,
        )
