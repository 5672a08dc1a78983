"""An output folder belongs to one run: the folder of another method, another recipe or other rows is refused with a message."""

import dataclasses
import json
import shutil

import pytest

from tests.callbacks.checkpoints.resuming import SAVED, build, resumed
from tests.callbacks.reporting.test_cards import ORIGIN


def run(four, folder, trainer="grpo", rows=slice(None), origin=None, **config):
    built = build(trainer, four[rows], {"output_dir": str(folder), **config})
    built.origin = origin
    return built


OTHER = {
    "method": ({"trainer": "pgpo"}, "its trainer is GRPOVideoTrainer, this run's PGPOTrainer"),
    "rows": ({"rows": slice(1, None)}, "it was trained on other rows"),
    "recipe": (
        {"origin": dataclasses.replace(ORIGIN, name="grpo/other")},
        "its recipe is grpo/tiny, this run's grpo/other",
    ),
}


@pytest.mark.parametrize("other", OTHER)
def test_another_runs_folder_is_refused_before_anything_is_written(other, four, tmp_path):
    settings, differs = OTHER[other]
    mine = dataclasses.replace(ORIGIN, name="grpo/tiny")
    run(four, tmp_path, origin=mine).claim_output_dir()
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    for resuming in (None, True):
        if resuming and other == "rows":  # the checkpoint says which rows differ, and how many
            continue
        with pytest.raises(ValueError, match=f"holds another run: {differs}. Set output_dir to another folder"):
            run(four, tmp_path, **{"origin": mine, **settings}).train(resume_from_checkpoint=resuming)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    # The same run with another learning rate is still the same run.
    run(four, tmp_path, origin=mine, learning_rate=0.5).claim_output_dir()


def test_a_run_that_leaves_nothing_claims_no_folder(four, tmp_path):
    run(four, tmp_path, save_strategy="no").claim_output_dir()
    assert not (tmp_path / "run.json").exists()


def test_another_trainers_checkpoint_is_refused(saved, four, tmp_path):
    trainer = build("pgpo", four, {**SAVED, "save_strategy": "no", "output_dir": str(tmp_path)})
    said = "it is a checkpoint of GRPOVideoTrainer, and this run trains with PGPOTrainer. Set trainer as it was"
    with pytest.raises(ValueError, match=said):
        trainer.train(resume_from_checkpoint=str(saved / "checkpoint-4"))


def test_resuming_says_from_where(saved, four, tmp_path, capsys):
    folder = shutil.copytree(saved, tmp_path / "run")
    assert json.loads((folder / "run.json").read_text())["trainer"] == "GRPOVideoTrainer"
    resumed(folder, four, max_steps=4)
    assert f"resuming from checkpoint-4 of GRPO ({folder / 'checkpoint-4'})" in capsys.readouterr().out
