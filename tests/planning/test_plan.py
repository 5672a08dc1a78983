"""The plan of a recipe against the run that it describes."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.helpers import COMPARED
from trl_perception.assets import model_path
from trl_perception.cli.plan import accelerate_settings, main
from trl_perception.planning import World, world_of
from trl_perception.planning.plan import readable, steps_of
from trl_perception.train import build, parse
from trl_perception.trainers import TRAINERS

TINY = ["--bf16", "false", "--use_cpu", "true", "--report_to", "none"]


def said_by(capsys, *arguments):
    main(list(arguments))
    return capsys.readouterr().out


def test_a_plan_needs_no_weights(tmp_path, capsys):
    folder = tmp_path / "model"
    shutil.copytree(model_path("tiny"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    said = said_by(capsys, "--config", "appo/tiny", "--model_name_or_path", str(folder))
    assert "1,184,192 trained" in said
    assert "128 completions of 16 prompts a step (128 rows x 1 accumulated x 1)" in said
    assert "80, 10 epoch(s) of 128 rows" in said  # 80 steps of 16 prompts


@pytest.mark.parametrize(
    ("method", "size"),
    [
        (method, size)
        for method in TRAINERS
        for size in ("tiny", "qwen2_5_vl_7b", "qwen3_vl_8b", "qwen3_5_9b")
        if method not in COMPARED or size != "qwen3_5_9b"
    ],
)
def test_every_recipe_has_a_plan(method, size, capsys):
    arguments = ["--dataset_name", "synthetic", "--synthetic", '{"size": 32}', "--model_name_or_path", "tiny"]
    if method == "attn_distill":
        arguments += ["--teacher_model_name_or_path", "tiny_teacher"]
    said = said_by(capsys, "--config", f"{method}/{size}", *arguments)
    for part in ("processes", "parameters", "steps", "prompts", "tokens", "memory", "checkpoint", "weights", "cache"):
        assert part in said


def test_processes_and_shares_come_from_the_accelerate_config(capsys):
    said = said_by(capsys, "--config", "grpo/tiny", "--accelerate_config", "zero2", "--bf16", "true")
    assert "8, zero2" in said
    assert "128 rows x 1 accumulated x 8" in said
    assert "master weights" in said
    said = said_by(capsys, "--config", "grpo/tiny", "--accelerate_config", "fsdp2", "--num_processes", "4")
    assert "4, fsdp" in said
    with pytest.raises(SystemExit, match="zero2"):
        main(["--config", "grpo/tiny", "--accelerate_config", "zero_2"])
    assert accelerate_settings("cpu")["use_cpu"]


@pytest.mark.parametrize(
    "extra",
    [
        ["--num_train_epochs", "3"],
        ["--num_train_epochs", "1", "--steps_per_generation", "4", "--gradient_accumulation_steps", "2"],
        ["--num_train_epochs", "2", "--num_iterations", "2", "--gradient_accumulation_steps", "2"],
        ["--max_steps", "7"],
    ],
)
def test_steps_are_those_of_the_trainer(tmp_path, extra):
    given = [*TINY, "--config", "grpo/tiny", "--synthetic", '{"size": 42}', "--output_dir", str(tmp_path)]
    if "--max_steps" not in extra:
        extra = [*extra, "--max_steps", "-1"]
    script, config, model = parse([*given, "--per_device_train_batch_size", "32", *extra])
    trainer = build(script, config, model)
    *_, steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert steps_of(config, 42, 1) == steps
    assert world_of(trainer.accelerator) == World()


def test_a_run_begins_with_its_plan(tmp_path, capsys):
    from trl_perception.train import main as train

    arguments = ["--config", "grpo/tiny", "--synthetic", '{"size": 8}', "--per_device_train_batch_size", "16"]
    said = said_by(capsys, *arguments, "--use_cpu", "true")
    train([*arguments, *TINY, "--max_steps", "1", "--output_dir", str(tmp_path / "run")])
    began = capsys.readouterr().out
    for line in said.splitlines():
        if line.split()[0] in (
            "precision",
            "parameters",
            "batch",
            "prompts",
            "tokens",
            "shared",
            "memory",
            "checkpoint",
        ):
            assert line in began


def test_adapters_and_teachers_are_counted(capsys):
    lora = ["--use_peft", "true", "--lora_r", "4", "--lora_target_modules", "all-linear"]
    said = said_by(capsys, "--config", "grpo/tiny", *lora)
    trained = int(said.split(" trained")[0].split()[-1].replace(",", ""))
    assert 0 < trained < 200_000
    said = said_by(capsys, "--config", "attn_distill/tiny")
    teacher = yaml.safe_load((Path(model_path("tiny_teacher")) / "config.json").read_text())
    assert teacher["model_type"] == "qwen2_5_vl"
    assert "other models" in said


def test_sizes_are_readable():
    assert [readable(size) for size in (3 * 2**20, 1.5 * 2**30)] == ["3 MiB", "1.5 GiB"]
