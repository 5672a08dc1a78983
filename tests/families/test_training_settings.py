"""Settings of training on the families: adapters, checkpointing, a reference model, evaluation, and a run that is resumed."""

import copy
import math

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from tests.families.test_forwards import OURS
from tests.families.tiny import saved
from tests.families.training import mixed, trainer_of
from tests.helpers import history

FAMILIES = ("qwen3_vl", "qwen3_5", "internvl", "gemma4")
FAST = (("internvl", "adapter everywhere"), ("gemma4", "checkpointing"))
SETTINGS = {
    "adapter": {
        "extra": {
            "peft_config": LoraConfig(
                r=4, target_modules=r".*language_model.*\.(q_proj|v_proj|o_proj)|.*text_model.*q_proj"
            )
        }
    },
    "adapter everywhere": {"extra": {"peft_config": LoraConfig(r=4, target_modules="all-linear")}},
    "checkpointing": {"gradient_checkpointing": True},
    "reference": {"beta": 0.1},
}


@pytest.mark.parametrize(
    ("family", "setting"),
    [
        pytest.param(family, setting, marks=() if (family, setting) in FAST else pytest.mark.slow)
        for family in FAMILIES
        for setting in SETTINGS
    ],
)
def test_settings_of_training(family, setting, clips, pictures, tmp_path):
    given = {"gradient_checkpointing": False, **copy.deepcopy(SETTINGS[setting])}  # PEFT writes names into its settings
    if setting == "reference":  # TRL loads it from the policy's path
        given["model"] = str(saved(family, tmp_path / "model"))
    trainer = trainer_of(family, "grpo", tmp_path / "run", mixed(clips, pictures), **given)
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    trainer.train()
    losses, norms = history(trainer, "loss", "grad_norm")
    assert all(map(math.isfinite, losses))
    assert all(norm > 1e-3 for norm in norms)
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(value, before[name])}
    if "adapter" in setting:
        assert moved
        assert all("lora_" in name for name in moved)
        assert any("vis" in name for name in moved) == (setting == "adapter everywhere")
    else:
        assert moved == set(before)
    if setting == "reference":
        (kl,) = history(trainer, "kl")
        assert abs(kl[0]) < 1e-6  # the reference is the policy at first
        assert kl[1] > 1e-5


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name == "internvl" else pytest.mark.slow) for name in OURS]
)
def test_a_resumed_run_has_the_losses_of_a_whole_one(family, clips, pictures, tmp_path):
    """With an evaluation after each step; the reference model makes the losses differ from 0."""
    rows = mixed(clips, pictures)
    config = {
        "max_steps": 4,
        "beta": 0.1,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 1,
    }
    config["model"] = str(saved(family, tmp_path / "model"))
    config |= {"per_device_eval_batch_size": 10, "extra": {"eval_dataset": Dataset.from_list(rows)}}
    whole = trainer_of(family, "grpo", tmp_path / "run", rows, **config)
    whole.train()
    resumed = trainer_of(family, "grpo", tmp_path / "run", rows, **config)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    for metric in ("loss", "kl", "reward", "eval_reward"):
        expected, found = history(whole, metric) + history(resumed, metric)
        assert len(expected) == 4
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-7), metric
