"""A run that was killed and resumed is the run that was not, number for number; what was half written never counts."""

import functools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOTrainer

from tests.helpers import free_port
from tests.trainers.resuming import build, log_of
from trl_perception.media import VisualInputs
from trl_perception.reports.rollouts import read_groups
from trl_perception.train import parse, recipe_path
from trl_perception.trainers.checkpoints import saving
from trl_perception.trainers.checkpoints.disk import DiskFullError
from trl_perception.trainers.checkpoints.folder import UNFINISHED, clear_unfinished, last_complete, why_incomplete
from trl_perception.trainers.checkpoints.run_facts import digest_of
from trl_perception.trainers.stored import restore, store

ROOT = Path(__file__).parents[2]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
OPEN = {"steps_per_generation": 2, "gradient_accumulation_steps": 1, "num_iterations": 2}  # 4 steps a rollout
# Every method, and between them everything that a checkpoint must hold. Saved every third step, so that the checkpoint falls
# into the middle of a rollout of 4 steps; 8 steps are an epoch of 4 rows.
METHODS = {
    "grpo": (
        "grpo",
        {**OPEN, "beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2, "max_steps": 10, "report_every": 5},
    ),
    "appo": ("appo", {**OPEN, "accuracy_reward": "letter_variety", "reward_threshold": 6.0, "logging_steps": 2}),
    "pgpo": ("pgpo", {**OPEN, "dynamic_sampling": True, "dynamic_sampling_rounds": 1}),
    # One update a rollout, which serves the credit: nothing is open at a checkpoint, and an epoch has 2 steps.
    "ktr": ("ktr", {"gradient_accumulation_steps": 2, "steps_per_generation": 2, "max_steps": 7}),
    "ral": ("ral", {**OPEN, "beta": 0.1, "attn_reference": "old"}),
    "attn_distill": (
        "attn_distill",
        {**OPEN, "teacher_model_name_or_path": "tiny_teacher", "gkd_weight": 0.5, "grpo_weight": 1.0},
    ),
}
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
SAVED = {
    "num_iterations": 3,
    "gradient_accumulation_steps": 1,
    "steps_per_generation": 1,
    "max_steps": 5,
    "save_steps": 2,
}

QUICK = ("grpo", "ral", "half a file", "all but the name")


def killed(jobs, folder):
    """The jobs' runs, each killed where it says."""
    path = folder / "jobs.json"
    path.write_text(json.dumps(jobs))
    run = subprocess.run(
        [sys.executable, "-m", "tests.trainers.resuming", str(path)],
        cwd=ROOT, env=ALONE,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    ended = [line for line in run.stdout.splitlines() if line.startswith("ended")]
    assert ended == [f"ended {-signal.SIGKILL}"] * len(jobs), run.stderr[-4000:]


@pytest.fixture(scope="module")
def four(clips, pictures):
    def row(text, kind=None, **media):
        content = [*([{"type": kind}] if kind else []), {"type": "text", "text": text}]
        return {"prompt": [{"role": "user", "content": content}], "videos": [], "images": [], **media}

    return [
        row("Colour of scene 1?", "video", videos=clips[:1]),
        row("Say red."),
        row("Colour of panel 2?", "image", images=pictures[:1]),
        row("Colour of scene 4?", "video", videos=clips[3:4]),
    ]


@pytest.fixture(scope="module")
def dead(four, tmp_path_factory):
    """The folder that a killed run left, by its name; the quick ones die one behind the other in one go, and so the others."""

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
def test_a_killed_run_goes_on_exactly(name, dead, four, tmp_path):
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
def test_other_kinds_of_runs_go_on_exactly(name, four, tmp_path):
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
    assert get_last_checkpoint(folder) == str(folder / f"checkpoint-{last}")  # what transformers itself would take
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
    said = [record.message for record in caplog.records if record.name.endswith("saving")]
    assert len(said) == (last == 2)
    assert all(line.endswith(f"Removed checkpoint-4 of {folder}, which was not finished.") for line in said)
    assert [path.name for path in folder.glob("*checkpoint*")] == ["checkpoint-8"]
    assert not (folder / UNFINISHED).exists()


def test_a_complete_one_that_was_moved_away_comes_back(saved, four, tmp_path):
    """As a run leaves it that died between the two renames which put a checkpoint into the place of an older one."""
    folder = shutil.copytree(saved, tmp_path / "run")
    (folder / UNFINISHED).mkdir()
    (folder / "checkpoint-4").rename(folder / UNFINISHED / "replaced-checkpoint-4")
    shutil.copytree(folder / "checkpoint-2", folder / UNFINISHED / "checkpoint-4")
    said = clear_unfinished(folder)
    assert [line.split(" ")[1:4] for line in said] == [["is", "in", "its"], ["checkpoint-4", "of", f"{folder},"]]
    assert why_incomplete(folder / "checkpoint-4") is None
    assert json.loads((folder / "checkpoint-4" / "run.json").read_text())["step"] == 4
    assert not (folder / UNFINISHED).exists()


def test_a_run_writes_over_the_checkpoints_of_another(saved, four, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run")
    (folder / "checkpoint-2" / "of_another.txt").write_text("older")
    build("grpo", four, {**SAVED, "output_dir": str(folder), "max_steps": 2}).train()
    assert why_incomplete(folder / "checkpoint-2") is None
    assert not (folder / "checkpoint-2" / "of_another.txt").exists()
    assert not (folder / UNFINISHED).exists()


# Which checkpoint


@pytest.fixture(scope="module")
def saved(four, tmp_path_factory):
    """Checkpoints after 2 and 4 steps, in the middle of rollouts of 3 steps; the one that ends the run is taken away."""
    folder = tmp_path_factory.mktemp("saved")
    build("grpo", four, {**SAVED, "output_dir": str(folder)}).train()
    shutil.rmtree(folder / "checkpoint-5")
    return folder


def resumed(folder, rows, checkpoint=True, **config):
    trainer = build("grpo", rows, {**SAVED, "save_strategy": "no", "output_dir": str(folder), **config})
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer


def test_no_checkpoint_is_said(four, tmp_path):
    with pytest.raises(
        ValueError, match=r"resume_from_checkpoint is true, and .* has no complete checkpoint. It holds no f"
    ):
        resumed(tmp_path / "nowhere", four)


@pytest.mark.parametrize("as_text", [True, "true"])
def test_the_last_complete_checkpoint_is_taken(as_text, saved, four, tmp_path, caplog):
    folder = shutil.copytree(saved, tmp_path / "run")
    weights = folder / "checkpoint-4" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (folder / "checkpoint-30").mkdir()
    trainer = resumed(folder, four, as_text, max_steps=3)
    assert trainer.state.global_step == 3
    passed = [record.message for record in caplog.records if "passed over" in record.message]
    assert len(passed) == 2
    assert "checkpoint-30 is passed over: it has no complete.json" in passed[0]
    assert "checkpoint-4 is passed over: its model.safetensors has 1,000 bytes and was written with" in passed[1]


@pytest.mark.parametrize("written", ["resume_from_checkpoint: true", "resume_from_checkpoint: 'true'"])
def test_a_recipe_asks_for_the_last_one(written, saved, four, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{recipe_path('grpo/tiny').read_text()}\n{written}\noutput_dir: {tmp_path}/none\n")
    _, config, _ = parse(["--config", str(recipe)])
    with pytest.raises(ValueError, match=r"resume_from_checkpoint is true, and .*none has no complete checkpoint"):
        resumed(tmp_path / "none", four, config.resume_from_checkpoint)
    assert last_complete(saved) == saved / "checkpoint-4"
    assert last_complete(tmp_path / "none") is None


DAMAGE = {
    "cut": (
        lambda folder: os.truncate(folder / "optimizer.pt", 10),
        r"its optimizer.pt has 10 bytes and was written with",
    ),
    "gone": (lambda folder: (folder / "rank00000.safetensors").unlink(), "its rank00000.safetensors is missing"),
    "unlisted": (
        lambda folder: (folder / "complete.json").unlink(),
        "it has no complete.json, so that it was not written to",
    ),
    "list cut": (lambda folder: os.truncate(folder / "complete.json", 10), "its complete.json is damaged"),
    "nothing": (shutil.rmtree, "there is no such folder"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_that_is_named_is_refused(damage, saved, four, tmp_path):
    harm, said = DAMAGE[damage]
    folder = shutil.copytree(saved / "checkpoint-4", tmp_path / "checkpoint-4")
    harm(folder)
    with pytest.raises(ValueError, match=f"checkpoint-4, which cannot be resumed from: {said}"):
        resumed(tmp_path, four, str(folder))


def test_a_run_that_is_over_makes_no_further_step(saved, four, tmp_path):
    trainer = resumed(shutil.copytree(saved, tmp_path / "run"), four, max_steps=4)
    assert trainer.state.global_step == 4


def test_weights_alone_are_refused(four, tmp_path):
    build("grpo", four, {**SAVED, "output_dir": str(tmp_path), "save_only_model": True, "max_steps": 2}).train()
    with pytest.raises(ValueError, match="holds weights alone"):
        resumed(tmp_path, four)


# Retention


def test_the_limit_is_kept_and_the_best_stays(four, tmp_path):
    """Evaluations of 2, 4, 6, 8 steps find 4 the best, by a reward that is given: it stays beside the last."""
    config = {
        "output_dir": str(tmp_path),
        "save_steps": 2,
        "save_total_limit": 1,
        "eval_strategy": "steps",
        "eval_steps": 2,
    }
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_reward", "greater_is_better": True}
    trainer = build("grpo", four, {**config, **best, "num_generations_eval": 2, "per_device_eval_batch_size": 4})
    scores, kept = {2: 1.0, 4: 3.0, 6: 2.0, 8: 0.0}, {}
    weights = {}

    def evaluate(*args, **kwargs):
        step = trainer.state.global_step
        kept.setdefault(step, sorted(path.name for path in tmp_path.glob("checkpoint-*")))
        weights[step] = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        return {"eval_reward": scores[step]}

    trainer._evaluate = evaluate
    trainer.train()
    # before each save: what the saves until then left
    assert kept == {
        2: [],
        4: ["checkpoint-2"],
        6: ["checkpoint-4"],
        8: ["checkpoint-4", "checkpoint-6"],
    }
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [
        "checkpoint-4"
    ]  # as transformers leaves it in the end
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert not all(torch.equal(weights[4][name], weights[8][name]) for name in weights[4])
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, weights[4][name]), name


# A full disk


# The file for which there is no room, and the one that was written last: safetensors takes its own away again.
FULL_AT = {
    "model.safetensors": "generation_config.json",
    "optimizer.pt": "optimizer.pt",
    "rank00000.safetensors": "trainer_state.json",
}


@pytest.mark.parametrize("full_at", FULL_AT)
def test_a_full_disk_is_one_clear_error(full_at, saved, four, tmp_path, monkeypatch):
    folder = shutil.copytree(saved, tmp_path / "run")
    shutil.rmtree(folder / "checkpoint-4")
    trainer = build("grpo", four, {**SAVED, "output_dir": str(folder)})
    sizes = {path.name: path.stat().st_size for path in (saved / "checkpoint-4").iterdir()}
    owner, name = (saving, "write_state") if full_at.startswith("rank") else (trainer, "_save_checkpoint")
    plain, limits = getattr(owner, name), resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*args):
        resource.setrlimit(resource.RLIMIT_FSIZE, (sizes[full_at] - 4096, limits[1]))
        try:
            plain(*args)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(owner, name, limited)
    with pytest.raises(DiskFullError) as caught:
        trainer.train(resume_from_checkpoint=True)
    said = str(caught.value)
    assert f"Step 4: the checkpoint {folder}/checkpoint-4 could not be written: there was no room after" in said
    assert f" MiB, {FULL_AT[full_at]} last. " in said
    assert "MiB free" in said
    assert "save_total_limit (now None)" in said
    assert why_incomplete(folder / "checkpoint-2") is None
    assert [path.name for path in folder.rglob("checkpoint-*")] == ["checkpoint-2"]
    assert resumed(folder, four).state.global_step == 5  # with room again


@pytest.mark.slow
def test_a_disk_that_is_really_full(four, tmp_path):
    """A file system of 24 MiB, in name spaces of its own: the first checkpoint of 15 MiB has room, the second has not."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=24m none "{disk}"'
    if subprocess.run(["unshare", "-Urm", "sh", "-c", mount], check=False, capture_output=True).returncode:
        pytest.skip("user name spaces are not allowed here")
    jobs = [
        {
            "trainer": "grpo",
            "rows": four,
            "config": {**SAVED, "output_dir": str(disk)},
            "kill": {"at": "update", "count": 99},
        }
    ]
    (tmp_path / "jobs.json").write_text(json.dumps(jobs))
    command = f'{mount}; "{sys.executable}" -m tests.trainers.resuming "{tmp_path}/jobs.json"; cp -r "{disk}" "{tmp_path}/left"'
    run = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", command], cwd=ROOT, env=ALONE,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert f"Step 4: the checkpoint {disk}/checkpoint-4 could not be written: there was no room after" in run.stderr
    assert [path.name for path in (tmp_path / "left").rglob("checkpoint-*")] == ["checkpoint-2"]
    assert why_incomplete(tmp_path / "left" / "checkpoint-2") is None


# What does not fit


OTHER = {
    "rows": (
        {},
        slice(0, 3),
        r"a data set of 4 rows, and this run's has 3. Give it the same rows, or set ignore_data_skip",
    ),
    "order": ({}, slice(None, None, -1), r"on other rows than this run's, of the same number \(4\)"),
    "cut": ({"gradient_accumulation_steps": 3}, slice(4), "with gradient_accumulation_steps 1, and this run has 3"),
    "seed": ({"seed": 7}, slice(4), "with seed 42, and this run has 7"),
    "iterations": ({"num_iterations": 2}, slice(4), "with num_iterations 3, and this run has 2"),
    "KL": ({"beta": 0.1}, slice(4), "with kl False, and this run has True"),
}


@pytest.mark.parametrize("other", OTHER)
def test_a_run_that_does_not_fit_is_refused(other, saved, four, tmp_path):
    config, rows, said = OTHER[other]
    with pytest.raises(ValueError, match=f"checkpoint-4 does not fit this run: it was saved .*{said}"):
        resumed(tmp_path, four[rows], str(saved / "checkpoint-4"), **config)


def test_other_rows_are_gone_on_with_deliberately(saved, four, tmp_path, caplog):
    folder = shutil.copytree(saved, tmp_path / "run")
    trainer = resumed(
        folder, four[:2], ignore_data_skip=True, num_iterations=2, gradient_accumulation_steps=2, max_steps=6
    )
    assert trainer.state.global_step == 6
    (said,) = [record.message for record in caplog.records if "ignore_data_skip" in record.message]
    assert "although it was saved with gradient_accumulation_steps 1, and this run has 2." in said
    new = [entry for entry in trainer.state.log_history if entry["step"] > 4]
    assert "reward" in new[0]  # of a rollout of its own, not of the one that was open


def test_a_digest_tells_rows_apart_and_does_not_decode():
    rows = [{"prompt": f"{n}", "videos": [f"/nowhere/{n}.mp4"]} for n in range(3000)]
    one = digest_of(Dataset.from_list(rows))
    assert one == digest_of(Dataset.from_list(rows))
    assert one == digest_of(Dataset.from_list([*rows, *rows]).select(range(3000)))
    for place in (0, 2999):
        other = [*rows]
        other[place] = {"prompt": "other", "videos": []}
        assert digest_of(Dataset.from_list(other)) != one
    assert digest_of(Dataset.from_list([])) != one


# What a checkpoint holds


def test_a_checkpoint_is_pushed_by_the_name_that_stays(four, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        GRPOTrainer, "_push_from_checkpoint", lambda self, folder: pushed.append((folder, why_incomplete(Path(folder))))
    )
    trainer = build("grpo", four, {**SAVED, "output_dir": str(tmp_path), "max_steps": 2})
    trainer.args.push_to_hub = True
    trainer.train()
    assert pushed == [(str(tmp_path / "checkpoint-2"), None)]


def test_another_format_is_refused(saved, four, tmp_path):
    folder = shutil.copytree(saved / "checkpoint-2", tmp_path / "checkpoint-2")
    about = (folder / "run.json").read_text()
    (folder / "run.json").write_text(about.replace('"format": 1', '"format": 7'))
    with pytest.raises(ValueError, match=r"written by another version of this package \(format 7; 1 is wanted\)"):
        resumed(tmp_path, four, str(folder))


def test_what_is_added_is_json_and_safetensors(saved):
    about = json.loads((saved / "checkpoint-4" / "run.json").read_text())
    assert about["rows"] == 4
    assert about["settings"]["processes"] == 1
    state = json.loads((saved / "checkpoint-4" / "rank00000.json").read_text())
    assert state["micro_steps"] == 4
    tensors = load_file(saved / "checkpoint-4" / "rank00000.safetensors")
    assert {tensor.shape[0] for tensor in tensors.values() if tensor.ndim == 2} >= {4}


def test_a_rollout_comes_back_as_it_was():
    visual = VisualInputs(sample="s", token_types=torch.tensor([0, 2, 2]), video_grid_thw=torch.tensor([[1, 2, 4]]))
    whole = torch.arange(12.0).view(4, 3)
    batch = {
        "ids": whole[:2],
        "rows": list(whole[2:]),
        "visual_inputs": [visual, visual, None],
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 5, dtype=torch.bfloat16),
        "scale": 1.5,
        "count": torch.tensor(7),
    }
    packed, tensors = store([batch])
    (back,) = restore(json.loads(json.dumps(packed)), tensors, torch.device("cpu"))
    assert list(back) == list(batch)
    for name in ("ids", "mask", "empty", "count"):
        assert back[name].dtype == batch[name].dtype
        assert torch.equal(back[name], batch[name])
    assert [row.tolist() for row in back["rows"]] == [[6, 7, 8], [9, 10, 11]]
    assert back["scale"] == 1.5
    assert back["visual_inputs"][0] is back["visual_inputs"][1]
    assert back["visual_inputs"][2] is None
    assert back["visual_inputs"][0].sample == "s"
    assert back["visual_inputs"][0].pixel_values is None
    assert back["visual_inputs"][0].video_grid_thw.tolist() == [[1, 2, 4]]


def test_the_table_of_completions_is_whole(saved, four, tmp_path):
    """It is logged at the fifth step, of a rollout that was sampled before the checkpoint."""
    config = {**SAVED, "log_completions": True, "max_steps": 3, "logging_steps": 3, "steps_per_generation": 1}
    build("grpo", four, {**config, "output_dir": str(tmp_path)}).train()
    table = tmp_path / "completions" / "completions_00003.parquet"
    before = pq.read_table(table).to_pylist()
    table.unlink()
    build("grpo", four, {**config, "output_dir": str(tmp_path)}).train(
        resume_from_checkpoint=str(tmp_path / "checkpoint-2")
    )
    assert pq.read_table(table).to_pylist() == before
    assert len(before) == 4


def test_what_cannot_be_kept_is_named():
    with pytest.raises(TypeError, match=r"rollout\[0\].signal\[1\] is a object, which a checkpoint cannot hold"):
        store([{"signal": [None, object()]}])


# Several processes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pgpo", "ral"])
def test_two_processes_go_on_exactly(name, four, tmp_path):
    """Each has a rollout, random state and records of its own; 4 steps are an epoch, saved after 3."""
    trainer, config = METHODS[name]
    config = {**config, "save_steps": 3, "report_every": 1, "ddp_timeout": 60}
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
    run = subprocess.run(
        [sys.executable, "-m", *launch, "tests.trainers.resuming", str(tmp_path / "jobs.json")],
        cwd=ROOT, env=ALONE, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
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


def test_a_reference_that_moves_in_parts_is_refused(four, tmp_path):
    trainer = build("grpo", four, {**SAVED, "output_dir": str(tmp_path), "beta": 0.1, "sync_ref_model": True})
    trainer.is_fsdp_enabled = True
    with pytest.raises(ValueError, match="sync_ref_model moves the reference model, which is in parts under FSDP"):
        trainer.train()
