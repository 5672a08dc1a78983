"""Rewards that raise, hang or are not finite, in a trainer: one clear error, or the group is left out."""

import asyncio
import math
import time

import pytest
import torch

from tests.helpers import history, letter_variety, message, rows_of
from tests.trainers.test_bad_input import Batches
from trl_perception.rewards import RewardError


def row(name):
    return {"prompt": message(f"Say {name}."), "id": name, "target": name}


def raises_for_blue(completions, target, **columns):
    if "blue" in target:
        raise LookupError("no such colour")
    return letter_variety(completions)


def hangs(completions, **columns):
    time.sleep(3600)


async def hangs_later(completions, **columns):
    await asyncio.sleep(3600)


def test_a_reward_that_raises_stops_and_names_reward_and_row(make_trainer):
    trainer = make_trainer([row("red"), row("blue")], reward=raises_for_blue, per_device_train_batch_size=8)
    words = r"'raises_for_blue' raised LookupError: no such colour \(for completion [04], sample blue\)"
    with pytest.raises(RewardError, match=words) as error:
        trainer.train()
    assert isinstance(error.value.__cause__, LookupError)


@pytest.mark.parametrize("reward", [hangs, hangs_later])
def test_a_reward_that_hangs_stops_in_time(make_trainer, reward):
    trainer = make_trainer([row("red")], reward=reward, reward_timeout=0.2)
    with pytest.raises(RewardError, match=rf"'{reward.__name__}' did not return within 0.2 s.*raise reward_timeout"):
        trainer.train()


def nan_for_blue(completions, target, **columns):
    """Not finite for one of the four completions of "blue"."""
    values = letter_variety(completions)
    if "blue" in target:
        values[target.index("blue")] = math.nan
    return values


def test_a_reward_that_is_not_finite_stops(make_trainer):
    trainer = make_trainer([row("blue")], reward=nan_for_blue)
    with pytest.raises(ValueError, match=r"'nan_for_blue' returned nan for completion 0 \(sample blue\)"):
        trainer.train()


def test_a_reward_beyond_float32_stops(make_trainer):
    trainer = make_trainer([row("blue")], reward=lambda completions, **columns: [1e39] * len(completions))
    with pytest.raises(ValueError, match=r"<lambda> for sample blue.*on_nonfinite='skip' leaves such groups out"):
        trainer.train()


@pytest.mark.parametrize("loss_type", ["dapo", pytest.param("grpo", marks=pytest.mark.slow), "dr_grpo"])
def test_the_group_of_a_skipped_reward_leaves_the_loss_of_the_others_as_it_is(make_trainer, loss_type):
    trainer = make_trainer(
        [row("red"), row("blue")],
        cls=Batches,
        reward=nan_for_blue,
        on_nonfinite="skip",
        per_device_train_batch_size=8,
        loss_type=loss_type,
        beta=0.1,
        entropy_coef=0.5,
        max_steps=1,
    )
    with pytest.warns(UserWarning, match=r"the groups of rewards that are not finite: nan_for_blue for sample blue"):
        trainer.train()
    assert history(trainer, "nonfinite/rewards", "nonfinite/skipped") == [[1.0], [0.0]]
    (batch, _), *_ = trainer.batches
    good = [i for i, sample in enumerate(batch["sample"]) if sample["name"] == "sample red"]
    assert len(good) == 4
    bad = [i for i in range(8) if i not in good]
    assert batch["advantages"][bad].tolist() == [0.0] * 4
    assert not batch["tool_mask"][bad].any()
    alone = rows_of(batch, good)
    # 4 of 8 rows count: a mean over 8 is doubled; alone, the mean over 4 is used unchanged
    assert batch["row_scale"].item() == 2.0
    alone["row_scale"] = torch.tensor(1.0)
    assert batch["num_items_in_batch"].item() == batch["completion_mask"][good].sum().item()
    after = trainer._compute_loss(trainer.model, alone).item()
    assert after == pytest.approx(trainer._compute_loss(trainer.model, batch).item(), abs=1e-7)
    texts = trainer.processing_class.batch_decode(batch["completion_ids"][good], skip_special_tokens=True)
    mean = sum(letter_variety([[{"content": text}] for text in texts])) / 4
    assert history(trainer, "rewards/nan_for_blue/mean")[0] == pytest.approx([mean])


def test_a_reward_model_that_says_nan_is_not_one_that_does_not_apply(make_trainer):
    class Judge(torch.nn.Module):
        """Scores by length; NaN for the first text."""

        config = type("Config", (), {"_name_or_path": "judge"})

        def forward(self, input_ids, **kwargs):
            scores = torch.arange(float(len(input_ids))).unsqueeze(1)
            scores[0] = math.nan
            return type("Output", (), {"logits": scores})

    trainer = make_trainer([row("blue")])
    judge = Judge()
    trainer.reward_funcs, trainer.reward_func_names = [judge], ["judge"]
    trainer.reward_processing_classes = [trainer._tokenizer]
    with pytest.raises(ValueError, match="rewards that are not finite: judge for sample blue"):
        trainer.train()
