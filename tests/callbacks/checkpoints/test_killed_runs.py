"""A killed and resumed run equals an uninterrupted run, number for number; incomplete checkpoints are ignored."""

import functools
import json
import random
import shutil
import signal
import sys

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers.trainer_utils import get_last_checkpoint

from tests.callbacks.checkpoints.resuming import build, log_of, started
from tests.helpers import every_method, free_port
from trl_perception.callbacks.checkpoints.folder import UNFINISHED
from trl_perception.reports.rollouts import read_groups

OPEN = {"steps_per_generation": 2, "gradient_accumulation_steps": 1, "num_iterations": 2}  # 4 steps a rollout
# Every method; together they cover everything that a checkpoint must hold. Saved every third step, so that the checkpoint falls
# into the middle of a rollout of 4 steps; 8 steps are an epoch of 4 rows.
OWN = {
    "grpo": {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2, "max_steps": 10, "report_every": 5},
    "appo": {"accuracy_reward": "letter_variety", "reward_threshold": 6.0, "logging_steps": 2},
    "pgpo": {"dynamic_sampling": True, "dynamic_sampling_rounds": 1},
    # One update a rollout, which serves the credit: nothing is pending at a checkpoint, and an epoch has 2 steps.
    "ktr": {"gradient_accumulation_steps": 2, "num_iterations": 1, "max_steps": 7},
    "ral": {"beta": 0.1, "attn_reference": "old"},
    "papo": {"masked_gradient": True},
    "t_grpo": {"accuracy_reward": "letter_variety", "temporal_margin": 0.0, "correct_above": 5.0},
    "vppo": {"statistics": "global"},
    "attn_distill": {"teacher_model_name_or_path": "tiny_teacher", "gkd_weight": 0.5, "grpo_weight": 1.0},
}
METHODS = {name: (name, {**OPEN, **options}) for name, options in every_method(**OWN).items()}
# Others die in a random step. RAL while the record of its first rollout is open, which a checkpoint must then hold; GRPO before
# a rollout that is not recorded, as the steps of the last record, which are before the checkpoint, decide.
DIES_IN_STEP = {"grpo": 5, "ral": 4}
# Where a run dies in its second save, and the step of the last checkpoint that then counts.
MOMENTS = {
    "weights written": (2, 2),
    "half a file": (6, 2),  # four of a save: the arguments, the optimizer, the schedule, the random state
    "all but the name": (2, 2),
    "named": (2, 4),
}
QUICK = ("grpo", "ral", "half a file", "all but the name")


def killed(jobs, folder):
    """The jobs' runs, each killed at its given moment."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    run = started([sys.executable, "-m", "tests.callbacks.checkpoints.resuming", str(path)])
    ended = [line for line in run.stdout.splitlines() if line.startswith("ended")]
    assert ended == [f"ended {-signal.SIGKILL}"] * len(jobs), run.stderr[-4000:]


@pytest.fixture(scope="module")
def dead(four, tmp_path_factory):
    """The folder of a killed run, by name; the fast runs share one process launch, and the slow ones another."""

    def job(name, folder):
        if name in MOMENTS:
            config = {"output_dir": str(folder / name), "save_steps": 2, "save_total_limit": 1}
            return {"trainer": "grpo", "rows": four, "config": config, "kill": {"at": name, "count": MOMENTS[name][0]}}
        trainer, config = METHODS[name]
        steps, each = config.get("max_steps", 8), config["gradient_accumulation_steps"]
        update = random.Random(name).randrange(3 * each, steps * each) + 1  # after the first checkpoint
        config = {"report_every": 1, **config, "output_dir": str(folder / name), "save_steps": 3}
        kill = {"at": "update", "count": DIES_IN_STEP.get(name, update)}
        return {"trainer": trainer, "rows": four, "config": config, "kill": kill}

    @functools.cache
    def run(quick):
        folder = tmp_path_factory.mktemp("killed")
        killed([job(name, folder) for name in [*METHODS, *MOMENTS] if (name in QUICK) == quick], folder)
        return folder

    return lambda name: run(name in QUICK) / name


def split(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", split(METHODS))
def test_a_killed_run_resumes_exactly(name, dead, four, tmp_path):
    trainer, config = METHODS[name]
    config = {"report_every": 1, **config, "save_steps": 3}
    never = build(trainer, four, {**config, "output_dir": str(tmp_path), "save_strategy": "no"})
    never.train()
    again = build(trainer, four, {**config, "output_dir": str(dead(name))})
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == never.state.global_step
    assert log_of(again) == log_of(never)
    assert len({entry["grad_norm"] for entry in log_of(never) if "grad_norm" in entry}) > 2
    for ours, theirs in zip(again.model.state_dict().items(), never.model.state_dict().items(), strict=True):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1]), ours[0]
    assert read_groups(dead(name)) == read_groups(tmp_path)
    steps = [group["step"] for group in read_groups(tmp_path)[0]]
    assert steps == sorted(steps)
    assert len(set(steps)) >= 2


OTHER_RUNS = {
    "adapter": ("grpo", {**OPEN, "beta": 0.1}, 3),
    "adapter whose base teaches": ("attn_distill", {**OPEN, "gkd_weight": 0.5, "grpo_weight": 1.0}, 3),
    "features of a frozen tower": ("ral", {**OPEN, "freeze_vision_tower": True}, 3),
    "nothing of vision trains": ("pgpo", {**OPEN, "freeze_vision_tower": True, "freeze_merger": True}, 3),
    "end of an epoch": ("grpo", {**OPEN, "max_steps": 11}, 8),
    "steps across rollouts": ("grpo", {"steps_per_generation": 2, "gradient_accumulation_steps": 3, "max_steps": 7}, 3),
    "evaluation": ("grpo", {**OPEN, "eval_strategy": "steps", "eval_steps": 2, "num_generations_eval": 2}, 3),
    "workers that stay": (
        "grpo",
        {
            **{**OPEN, "max_steps": 10, "eval_strategy": "steps", "eval_steps": 5, "num_generations_eval": 2},
            **{"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        },
        8,
    ),
    "gradient checkpointing": ("ral", {**OPEN, "gradient_checkpointing": True}, 3),
    "streamed": ("grpo", {**OPEN, "max_steps": 7}, 3),
    "two kinds of floats": (
        "grpo",
        {**OPEN, "model_init_kwargs": {"dtype": "bfloat16"}, "cast_lm_head_to_fp32": True},
        3,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHER_RUNS)
def test_other_kinds_of_runs_resume_exactly(name, four, tmp_path):
    trainer, config, step = OTHER_RUNS[name]
    config = {**config, "output_dir": str(tmp_path), "save_steps": step, "per_device_eval_batch_size": 4}
    extra = {"peft_config": LoraConfig(r=4, target_modules=["q_proj", "v_proj"])} if "adapter" in name else {}
    rows = Dataset.from_list(four).to_iterable_dataset() if name == "streamed" else four
    never = build(trainer, rows, dict(config), **extra)
    never.train()
    again = build(trainer, rows, dict(config), **extra)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert log_of(again) == log_of(never)
    for ours, theirs in zip(again.model.state_dict().values(), never.model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("moment", split(MOMENTS))
def test_a_checkpoint_in_the_making_never_counts(moment, dead, four, tmp_path, caplog):
    folder, last = shutil.copytree(dead(moment), tmp_path / "run"), MOMENTS[moment][1]
    assert get_last_checkpoint(folder) == str(folder / f"checkpoint-{last}")  # the one transformers itself would choose
    kept = [path.name for path in folder.glob("checkpoint-*")]
    assert kept == ["checkpoint-2"] if last == 2 else set(kept) == {"checkpoint-2", "checkpoint-4"}
    config = {"output_dir": str(folder), "save_steps": 2, "save_total_limit": 1}
    trainer = build("grpo", four, config)
    first = []
    trainer.training_step = lambda *args, step=trainer.training_step: (
        first.append(trainer.state.global_step),
        step(*args),
    )[1]
    trainer.train(resume_from_checkpoint=True)
    assert first[0] == last
    said = [record.message for record in caplog.records if record.name.endswith("folder")]
    assert len(said) == (last == 2)
    assert all(line.endswith(f"Removed checkpoint-4 of {folder}, which was not finished.") for line in said)
    assert [path.name for path in folder.glob("*checkpoint*")] == ["checkpoint-8"]
    assert not (folder / UNFINISHED).exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pgpo", "ral"])
def test_two_processes_resume_exactly(name, four, tmp_path):
    """Each process has its own rollout, random state and records; an epoch has 4 steps, saved after 3."""
    trainer, config = METHODS[name]
    config = {**config, "save_steps": 3, "report_every": 1, "ddp_timeout": 180}
    job = {"trainer": trainer, "rows": four}
    folders = {run: str(tmp_path / run) for run in ("never", "killed")}
    jobs = [
        {
            **job,
            "config": {**config, "output_dir": folders["never"]},
            "log": str(tmp_path / "never.json"),
            "port": free_port(),
        },
        {
            **job,
            "config": {**config, "output_dir": folders["killed"]},
            "kill": {"at": "update", "count": 6},
            "port": free_port(),
        },
        {
            **job,
            "config": {**config, "output_dir": folders["killed"]},
            "log": str(tmp_path / "again.json"),
            "port": free_port(),
        },
    ]
    jobs[2]["resume"] = True
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    launch = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port()), "-m"]
    jobs_of_two = ["tests.callbacks.checkpoints.resuming", str(tmp_path / "jobs.json")]
    run = started([sys.executable, "-m", *launch, *jobs_of_two], seconds=500)
    ended = [line for line in run.stdout.splitlines() if line.startswith("ended")]
    assert len(ended) == 6, run.stderr[-4000:]
    assert ended.count("ended 0") == 4, run.stderr[-4000:]
    assert ended.count(f"ended {-signal.SIGKILL}") == 1
    never, again = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("never", "again"))
    assert again == never
    assert {entry["step"] for entry in never} == set(range(1, 9))
    assert read_groups(folders["killed"]) == read_groups(folders["never"])
    checkpoint = tmp_path / "killed" / "checkpoint-3"
    assert {path.name for path in checkpoint.glob("rank*.safetensors")} == {
        "rank00000.safetensors",
        "rank00001.safetensors",
    }
    with pytest.raises(ValueError, match="it was saved with processes 2, and this run has 1"):
        build(trainer, four, {**config, "output_dir": str(tmp_path)}).train(resume_from_checkpoint=str(checkpoint))
