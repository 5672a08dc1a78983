"""The two hooks of a subclass: what they see, and how what they return enters the loss."""

import pytest
import torch

from tests.helpers import history
from trl_perception import GRPOVideoTrainer
from trl_perception.objectives import Penalty, TokenWeights


class FirstTokens(GRPOVideoTrainer):
    """All credit on the first two tokens of a completion; keeps its groups and what the update received."""

    def __init__(self, *args, **kwargs):
        self.groups, self.batches = [], []
        super().__init__(*args, **kwargs)

    def token_weights(self, group):
        self.groups.append(group)
        weights = torch.zeros_like(group.completion_ids, dtype=torch.float32)
        weights[:, :2] = 3.0
        return TokenWeights(weights * group.completion_mask, {"first/weight_max": 3.0})

    def _compute_loss(self, model, inputs):
        self.batches.append(inputs)
        return super()._compute_loss(model, inputs)


class Ones(GRPOVideoTrainer):
    def token_weights(self, group):
        return TokenWeights(torch.ones_like(group.completion_ids, dtype=torch.float32), {})


class Shrink(GRPOVideoTrainer):
    """Adds 0.5 * |w|^2 of one layer, whose gradient is w."""

    def penalty(self, inputs):
        weight = self.model.lm_head.weight
        return Penalty(0.5 * weight.square().sum(), {"shrink/norm": weight.detach().norm()})


class ShrinkByNothing(GRPOVideoTrainer):
    def penalty(self, inputs):
        return Penalty(0.0 * self.model.lm_head.weight.sum(), {})


def test_token_weights_see_complete_groups_and_multiply_advantages(rows, make_trainer):
    # 8 completions a rollout in micro-batches of 2: two groups of four, cut in half by the micro-batches
    trainer = make_trainer(
        rows["mixed"], cls=FirstTokens, per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=2
    )
    trainer.train()
    assert len(trainer.groups) == 4
    for group in trainer.groups:
        assert group.completion_ids.shape == group.completion_mask.shape
        assert len(group.completion_ids) == 4
        assert group.prompt_ids.tolist() == group.prompt.input_ids
        assert list(group.rewards) == ["letter_variety"]
        rewards = group.rewards["letter_variety"]
        # TRL: (r - mean) / (std + 1e-4) within the group
        torch.testing.assert_close(group.advantages, (rewards - rewards.mean()) / (rewards.std() + 1e-4))
    sequence = {
        (*g.prompt.input_ids, *ids.tolist()): a
        for g in trainer.groups
        for ids, a in zip(g.completion_ids, g.advantages, strict=True)
    }
    keys = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages")
    for batch in trainer.batches:
        for prompt, shown, ids, mask, advantages in zip(*(batch[key] for key in keys), strict=True):
            advantage = sequence[(*prompt[shown.bool()].tolist(), *ids.tolist())]
            expected = advantage * torch.tensor([3.0, 3.0, 0, 0, 0, 0, 0, 0])[: len(ids)] * mask
            torch.testing.assert_close(advantages, expected)
    assert history(trainer, "first/weight_max") == [[3.0, 3.0]]


def test_weights_of_one_change_nothing_and_others_do(rows, make_trainer):
    outcomes = []
    for cls in (GRPOVideoTrainer, Ones, FirstTokens):
        trainer = make_trainer(rows["video"], cls=cls, num_iterations=2)
        trainer.train()
        outcomes.append(history(trainer, "loss", "grad_norm"))
    plain, ones, first = outcomes
    assert ones[0] == pytest.approx(plain[0], abs=1e-7)
    assert ones[1] == pytest.approx(plain[1], rel=1e-6)
    assert first[1] != pytest.approx(plain[1], rel=1e-2)


@pytest.mark.parametrize(
    ("made_of", "error", "words"),
    [
        (lambda ones: ones, TypeError, r"returned a Tensor; TokenWeights\(weights \(4, \d\), metrics\) is wanted"),
        (lambda ones: TokenWeights(ones[0]), ValueError, r"weights of shape \(\d,\); \(4, \d\) is wanted"),
        (lambda ones: TokenWeights(ones[:, :1]), ValueError, r"weights of shape \(4, 1\); \(4, \d\) is wanted"),
        (lambda ones: TokenWeights(-0.5 * ones), ValueError, "returned -0.5; weights of at least 0 are wanted"),
    ],
)
def test_weights_that_would_be_misread_are_refused(rows, make_trainer, made_of, error, words):
    class Wrong(GRPOVideoTrainer):
        def token_weights(self, group):
            return made_of(torch.ones_like(group.completion_ids, dtype=torch.float32))

    with pytest.raises(error, match=words):
        make_trainer(rows["text"], cls=Wrong, max_steps=1).train()


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (torch.zeros(()), "returned Tensor; Penalty"),
        (Penalty(torch.zeros(3)), r"returned a loss of shape \(3,\); Penalty"),
    ],
)
def test_a_penalty_that_is_no_scalar_is_refused(rows, make_trainer, returned, words):
    class Wrong(GRPOVideoTrainer):
        def penalty(self, inputs):
            return returned

    with pytest.raises(TypeError, match=words):
        make_trainer(rows["text"], cls=Wrong, max_steps=1).train()


def test_penalty_enters_once_a_step_whatever_the_accumulation(rows, make_trainer):
    """With a learning rate and advantages of zero, the gradient is the penalty's: |w|, at any accumulation."""
    for accumulation in (1, 4):
        trainer = make_trainer(
            rows["video"],
            cls=Shrink,
            reward=lambda completions, **columns: [1.0] * len(completions),  # no variance: advantages 0
            gradient_accumulation_steps=accumulation,
            learning_rate=0.0,
            max_grad_norm=0.0,
            max_steps=1,
        )
        trainer.train()
        norm = trainer.model.lm_head.weight.detach().norm().item()
        (logged,), (losses,), (gradients,) = (
            history(trainer, "shrink/norm"),
            history(trainer, "loss"),
            history(trainer, "grad_norm"),
        )
        assert logged == pytest.approx([norm])
        assert losses == pytest.approx([0.5 * norm**2], rel=1e-5)
        assert gradients == pytest.approx([norm], rel=1e-5)


def test_a_penalty_of_zero_changes_nothing(rows, make_trainer):
    outcomes = []
    for cls in (GRPOVideoTrainer, ShrinkByNothing):
        trainer = make_trainer(rows["image"], cls=cls)
        trainer.train()
        outcomes.append(history(trainer, "loss", "grad_norm"))
    assert outcomes[0] == outcomes[1]


def test_hooks_work_on_plain_text_models(rows, make_trainer):
    """A tokenizer instead of a processor: TRL prepares the prompts, groups and weights stay ours."""
    from transformers import AutoProcessor

    from trl_perception.assets import model_path

    tokenizer = AutoProcessor.from_pretrained(model_path("tiny")).tokenizer
    tokenizer.padding_side = "left"
    text = [{"prompt": "Say red."}, {"prompt": "Say a longer blue."}]
    trainer = make_trainer(
        text,
        cls=FirstTokens,
        reward=lambda completions, **columns: [float(len(set(c))) for c in completions],
        extra={"processing_class": tokenizer},
        max_steps=1,
    )
    trainer.train()
    (group,) = trainer.groups
    assert tokenizer.decode(group.prompt_ids) in ("Say red.", "Say a longer blue.")
    assert group.prompt.visual.visual_tokens == 0
