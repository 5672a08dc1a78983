"""A checkpoint of another run: other rows, other batches, another format."""

import json
import shutil

import pytest
from datasets import Dataset

from benchmarks.cluster_simulation import processes
from tests.callbacks.checkpoints.resuming import resumed
from trl_perception.callbacks.checkpoints.run_facts import digest_of

OTHER = {
    "rows": (
        {},
        slice(0, 3),
        r"a data set of 4 rows, and this run's has 3. Give it the same rows, or set ignore_data_skip",
    ),
    "order of rows": ({}, slice(None, None, -1), r"on other rows than this run's, of the same number \(4\)"),
    "cut": ({"gradient_accumulation_steps": 3}, slice(4), "with gradient_accumulation_steps 1, and this run has 3"),
    "batch": ({"per_device_train_batch_size": 8}, slice(4), "with per_device_train_batch_size 4, and this run has 8"),
    "group": ({"num_generations": 2}, slice(4), "with num_generations 4, and this run has 2"),
    "order": ({"shuffle_dataset": False}, slice(4), "with shuffle_dataset True, and this run has False"),
    "seed": ({"seed": 7}, slice(4), "with seed 42, and this run has 7"),
    "iterations": ({"num_iterations": 2}, slice(4), "with num_iterations 3, and this run has 2"),
    "KL": ({"beta": 0.1}, slice(4), "with kl False, and this run has True"),
}


@pytest.mark.parametrize("other", OTHER)
def test_a_run_that_does_not_fit_is_refused(other, saved, four, tmp_path):
    config, rows, said = OTHER[other]
    with pytest.raises(ValueError, match=f"checkpoint-4 does not fit this run: it was saved .*{said}"):
        resumed(tmp_path, four[rows], str(saved / "checkpoint-4"), **config)


@pytest.mark.parametrize("batch", [4, pytest.param(2, marks=pytest.mark.slow)], ids=["each", "all"])
def test_other_processes_are_refused_on_each_of_them(saved, four, tmp_path, batch):
    """Also where the batch of all processes is the same as before."""
    config = {"per_device_train_batch_size": batch, "num_generations": batch}
    with processes(2) as become:
        for rank in range(2):
            become(rank)
            with pytest.raises(
                ValueError, match=r"it was saved with processes 1, and this run has 2\. Set it as it was, or"
            ):
                resumed(tmp_path / f"{rank}", four, str(saved / "checkpoint-4"), **config)


def test_a_run_resumes_with_other_rows_deliberately(saved, four, tmp_path, caplog):
    folder = shutil.copytree(saved, tmp_path / "run")
    trainer = resumed(
        folder, four[:2], ignore_data_skip=True, num_iterations=2, gradient_accumulation_steps=2, max_steps=6
    )
    assert trainer.state.global_step == 6
    (said,) = [record.message for record in caplog.records if "ignore_data_skip" in record.message]
    assert "although it was saved with gradient_accumulation_steps 1, and this run has 2." in said
    new = [entry for entry in trainer.state.log_history if entry["step"] > 4]
    assert "reward" in new[0]  # from a new rollout, not from the interrupted one


def test_a_digest_distinguishes_rows_and_does_not_decode():
    rows = [{"prompt": f"{n}", "videos": [f"/nowhere/{n}.mp4"]} for n in range(3000)]
    one = digest_of(Dataset.from_list(rows))
    assert one == digest_of(Dataset.from_list(rows))
    assert one == digest_of(Dataset.from_list([*rows, *rows]).select(range(3000)))
    for place in (0, 2999):
        other = [*rows]
        other[place] = {"prompt": "other", "videos": []}
        assert digest_of(Dataset.from_list(other)) != one
    assert digest_of(Dataset.from_list([])) != one


def test_another_format_is_refused(saved, four, tmp_path):
    folder = shutil.copytree(saved / "checkpoint-2", tmp_path / "checkpoint-2")
    about = (folder / "run.json").read_text()
    (folder / "run.json").write_text(about.replace('"format": 2', '"format": 7'))
    listed = json.loads((folder / "complete.json").read_text())
    (folder / "complete.json").write_text(json.dumps({"files": listed["files"]}))
    with pytest.raises(ValueError, match=r"written by another version of this package \(format 7; 2 is wanted\)"):
        resumed(tmp_path, four, str(folder))
