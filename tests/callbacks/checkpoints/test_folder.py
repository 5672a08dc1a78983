"""The checkpoint a run resumes from, and what does not count as a checkpoint."""

import json
import os
import shutil

import pytest

from tests.callbacks.checkpoints.resuming import SAVED, build, resumed
from trl_perception.callbacks.checkpoints.folder import UNFINISHED, clear_unfinished, incomplete_reason, last_complete
from trl_perception.recipe import recipe_path
from trl_perception.train import parse


def test_a_missing_checkpoint_is_reported(four, tmp_path):
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


def test_one_bit_of_any_file_is_noticed(saved, tmp_path):
    folder = shutil.copytree(saved / "checkpoint-4", tmp_path / "checkpoint-4")
    names = json.loads((folder / "complete.json").read_text())["files"]
    assert {"model.safetensors", "optimizer.pt", "rank00000.json", "rank00000.safetensors", "run.json"} <= set(names)
    for name in names:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        assert incomplete_reason(folder) == f"its {name} does not have the content that was written"
        shutil.copy(saved / "checkpoint-4" / name, folder / name)
    assert incomplete_reason(folder) is None


def test_weights_alone_are_refused(four, tmp_path):
    build("grpo", four, {**SAVED, "output_dir": str(tmp_path), "save_only_model": True, "max_steps": 2}).train()
    with pytest.raises(ValueError, match="holds weights alone"):
        resumed(tmp_path, four)


def test_a_run_that_is_over_makes_no_further_step(saved, four, tmp_path):
    trainer = resumed(shutil.copytree(saved, tmp_path / "run"), four, max_steps=4)
    assert trainer.state.global_step == 4


def test_a_complete_one_that_was_moved_away_comes_back(saved, tmp_path, caplog):
    """The state left by a run that died between the two renames that replace a checkpoint."""
    folder = shutil.copytree(saved, tmp_path / "run")
    (folder / UNFINISHED).mkdir()
    (folder / "checkpoint-4").rename(folder / UNFINISHED / "replaced-checkpoint-4")
    shutil.copytree(folder / "checkpoint-2", folder / UNFINISHED / "checkpoint-4")
    clear_unfinished(folder)
    removed, returned = (record.message for record in caplog.records if record.name.endswith("folder"))
    assert removed.endswith(f"Removed checkpoint-4 of {folder}, which was not finished.")
    assert f"{folder}/checkpoint-4 is in its place again" in returned
    assert incomplete_reason(folder / "checkpoint-4") is None
    assert json.loads((folder / "checkpoint-4" / "run.json").read_text())["step"] == 4
    assert not (folder / UNFINISHED).exists()
