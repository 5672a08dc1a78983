"""The two hooks of a subclass: their arguments, and how their results enter the loss."""

import pytest
import torch
from transformers import AutoProcessor

from tests.helpers import history, message
from trl_perception import GRPOVideoTrainer
from trl_perception.assets import model_path
from trl_perception.objectives import Penalty, TokenWeights
from trl_perception.trainers.policy_reader import PolicyReads


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


@pytest.mark.parametrize("loss_type", ["grpo", "cispo"])
def test_weights_that_a_sequence_ratio_averages_away_are_reported(rows, make_trainer, caplog, loss_type):
    # s = exp(mean_t (log p_t - log q_t)): the gradient of sum_t A w_t s is A (sum_t w_t) grad s, for any single weights;
    # for cispo s itself has no gradient: sum_t A w_t s log p_t
    settings = {"importance_sampling_level": "sequence", "loss_type": loss_type, "max_steps": 1}
    make_trainer(rows["text"], cls=FirstTokens, **settings).train()
    said = [record.message for record in caplog.records if "of the token weights of FirstTokens" in record.message]
    assert len(said) == (loss_type == "grpo")


class FirstTokensWithReads(FirstTokens):
    policy_reads = PolicyReads()  # so that credit is assigned in the update


@pytest.mark.parametrize("slices", [1, 2])
def test_credit_is_given_once_where_a_step_visits_a_rollout_twice(rows, make_trainer, slices):
    # two passes over `slices` micro-batches make one step: no optimisation lies between, and the update serves the credit
    outcomes = []
    for cls in (FirstTokens, FirstTokensWithReads):
        schedule = {
            "steps_per_generation": slices,
            "num_iterations": 2,
            "gradient_accumulation_steps": 2 * slices,
            "max_steps": 2,
        }
        trainer = make_trainer(rows["video"], cls=cls, **schedule)
        trainer.train()
        assert len(trainer.groups) == 2 * slices  # a group a micro-batch
        for batch in trainer.batches:
            assert batch["advantages"].shape == batch["completion_ids"].shape
            assert (batch["advantages"][:, 2:] == 0).all()
            # (r - mean) / (std + 1e-4) of four is below 1.5; times a weight of 3, once
            assert batch["advantages"].abs().max() < 4.5
        outcomes.append(history(trainer, "loss", "grad_norm"))
    for before, within in zip(*outcomes, strict=True):
        assert within == pytest.approx(before, rel=1e-4, abs=1e-6)


def test_every_micro_batch_gives_credit_whatever_is_left_out(rows, make_trainer, monkeypatch):
    """Credit gathers its metrics over processes: one whose groups are all left out takes part with none."""
    gone = {"prompt": message("Gone?", "video"), "videos": ["/nowhere.mp4"], "images": []}
    options = {"gradient_accumulation_steps": 2, "on_bad_media": "skip", "max_steps": 1}
    trainer = make_trainer([rows["video"][0], gone], cls=FirstTokensWithReads, **options)
    counts, give_credit = [], trainer._give_credit
    monkeypatch.setattr(
        trainer, "_give_credit", lambda groups, *others: counts.append(len(groups)) or give_credit(groups, *others)
    )
    with pytest.warns(UserWarning, match="Left out"):
        trainer.train()
    assert sorted(counts) == [0, 1]


class Wordy(GRPOVideoTrainer):
    """Changes the prompt of each completion, as an environment may; records which completion belongs to which prompt."""

    def _tokenize_prompts(self, prompts):
        ids, *others = super()._tokenize_prompts(prompts)
        return [[*of_row, *[20 + row] * row] for row, of_row in enumerate(ids)], *others

    def _generate_single_turn(self, prompt_ids, *args, **kwargs):
        sampled = super()._generate_single_turn(prompt_ids, *args, **kwargs)
        self.sampled = dict(zip(map(tuple, prompt_ids), sampled[0], strict=True))
        return sampled


def test_prompts_that_differ_within_a_group_are_each_read(make_trainer):
    sampled = []
    for shared in (True, False):
        greedy = {"generation_kwargs": {"do_sample": False}, "shared_prefill": shared, "max_steps": 1}
        text = [{"prompt": "Say red."}]
        tokenizer = AutoProcessor.from_pretrained(model_path("tiny"), padding_side="left").tokenizer
        letters = {"reward": lambda completions, **columns: [float(len(set(c))) for c in completions]}
        trainer = make_trainer(text, cls=Wordy, extra={"processing_class": tokenizer}, **letters, **greedy)
        trainer.train()
        sampled.append(trainer.sampled)
    assert sampled[0] == sampled[1]
    assert len(set(map(tuple, sampled[1].values()))) > 1
