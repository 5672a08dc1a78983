"""What a save writes, which earlier saves it keeps, and what it pushes."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOTrainer

from tests.callbacks.checkpoints.resuming import SAVED, build
from trl_perception.callbacks.checkpoints.folder import UNFINISHED, incomplete_reason
from trl_perception.trainers import grpo_video_trainer


def test_what_is_added_is_json_and_safetensors(saved):
    about = json.loads((saved / "checkpoint-4" / "run.json").read_text())
    assert about["rows"] == 4
    assert about["settings"]["processes"] == 1
    state = json.loads((saved / "checkpoint-4" / "rank00000.json").read_text())
    assert state["micro_steps"] == 4
    tensors = load_file(saved / "checkpoint-4" / "rank00000.safetensors")
    assert {tensor.shape[0] for tensor in tensors.values() if tensor.ndim == 2} >= {4}


def test_the_limit_is_kept_and_the_best_stays(four, tmp_path):
    """Evaluations at steps 2, 4, 6 and 8 find step 4 best, by a scripted reward: it is kept along with the last."""
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
    # before each save: the checkpoints kept so far
    assert kept == {
        2: [],
        4: ["checkpoint-2"],
        6: ["checkpoint-4"],
        8: ["checkpoint-4", "checkpoint-6"],
    }
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [
        "checkpoint-4"
    ]  # as transformers leaves it at the end
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")
    assert not all(torch.equal(weights[4][name], weights[8][name]) for name in weights[4])
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, weights[4][name]), name


def test_a_run_writes_over_the_checkpoints_of_another(saved, four, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "run")
    (folder / "checkpoint-2" / "of_another.txt").write_text("older")
    build("grpo", four, {**SAVED, "output_dir": str(folder), "max_steps": 2}).train()
    assert incomplete_reason(folder / "checkpoint-2") is None
    assert not (folder / "checkpoint-2" / "of_another.txt").exists()
    assert not (folder / UNFINISHED).exists()


def test_a_checkpoint_is_pushed_by_the_name_that_stays(four, tmp_path, monkeypatch):
    pushed = []
    monkeypatch.setattr(
        GRPOTrainer,
        "_push_from_checkpoint",
        lambda self, folder: pushed.append((folder, incomplete_reason(Path(folder)))),
    )
    trainer = build("grpo", four, {**SAVED, "output_dir": str(tmp_path), "max_steps": 2})
    trainer.args.push_to_hub = True
    trainer.train()
    assert pushed == [(str(tmp_path / "checkpoint-2"), None)]


def test_the_table_of_completions_is_whole(saved, four, tmp_path):
    """It is logged at the fifth step, for a rollout sampled before the checkpoint."""
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


def test_a_reference_that_moves_in_parts_is_refused(four, tmp_path, monkeypatch):
    monkeypatch.setattr(grpo_video_trainer, "is_deepspeed_zero3_enabled", lambda: True)
    config = {**SAVED, "output_dir": str(tmp_path), "beta": 0.1, "sync_ref_model": True}
    with pytest.raises(ValueError, match="sync_ref_model moves the reference model, which is in parts under FSDP"):
        build("grpo", four, config)
    build("grpo", four, {**config, "save_strategy": "no"})
