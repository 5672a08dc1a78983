"""Every tiny recipe runs, as a user launches it and with the settings that users change."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from trl_perception.recipe import shipped_recipes
from trl_perception.train import build, parse

ROOT = Path(__file__).parent.parent
RECIPES = [name.removesuffix("/tiny") for name in shipped_recipes() if name.endswith("/tiny")]
SMALL = ["--per_device_train_batch_size", "16", "--warmup_steps", "0", "--disable_tqdm", "true"]

VARIANTS = {
    "video": [],
    "images": ["--synthetic", '{"size": 16, "medium": "image", "seed": 1}'],
    "mixed media": ["--synthetic", '{"size": 16, "medium": "mixed", "seed": 1}'],
    "LoRA": ["--use_peft", "true", "--lora_target_modules", "q_proj", "v_proj", "--lora_r", "4"],
    "gradient checkpointing": ["--gradient_checkpointing", "true"],
    "two iterations": ["--num_iterations", "2"],
    "more rollout than accumulation": ["--steps_per_generation", "2", "--num_iterations", "1"],
    "KL reference": ["--beta", "0.1"],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache of synthetic clips for all runs of this file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_PERCEPTION_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def check(log_history, recipe, steps, logs):
    """Every step was logged with finite numbers, the policy changed, and the method logged its metrics if it `logs` any."""
    entries = [entry for entry in log_history if "loss" in entry]
    assert len(entries) == steps
    assert all(math.isfinite(entry["loss"]) and math.isfinite(entry["grad_norm"]) for entry in entries)
    assert any(entry["grad_norm"] > 0 for entry in entries)
    method = recipe.removesuffix("_zero")
    assert any(key.startswith(f"{method}/") for entry in entries for key in entry) == logs


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_five_steps_in_every_setting(recipe, variant, tmp_path, cache):
    arguments = ["--config", f"{recipe}/tiny", "--output_dir", str(tmp_path), "--max_steps", "5", "--use_cpu", "true"]
    small = ["--synthetic", '{"size": 16, "seed": 1}', *SMALL]
    trainer = build(*parse([*arguments, *small, *VARIANTS[variant]]))
    trainer.train()
    check(trainer.state.log_history, recipe, 5, logs=recipe != "grpo" and (recipe, variant) != ("t_grpo", "images"))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_twenty_steps_through_accelerate_launch(recipe, tmp_path, cache):
    config = ROOT / "recipes" / "accelerate_configs" / "cpu.yaml"
    command = [
        *(
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(config),
            "-m",
            "trl_perception.train",
        ),
        *("--config", f"{recipe}/tiny", "--output_dir", str(tmp_path), "--max_steps", "20", "--save_strategy", "steps"),
        *("--save_steps", "20", "--synthetic", '{"size": 16, "seed": 1}', *SMALL),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "over the first tenth of steps" in done.stdout
    state = json.loads((tmp_path / "checkpoint-20" / "trainer_state.json").read_text())
    check(state["log_history"], recipe, 20, logs=recipe != "grpo")
