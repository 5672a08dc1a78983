"""Studies on the embedded model: a cell that is interrupted, and a whole study that is killed, resumed and run in parts."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from transformers import TrainerCallback

from tests.study.test_configuration import written
from trl_perception.cli.main import main
from trl_perception.study import worker
from trl_perception.study.cells import cells_of
from trl_perception.study.configuration import read_study
from trl_perception.study.results import collect

SMALL = {"num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 16, "report_every": 1}


class Killed(TrainerCallback):
    """Ends a run after its second step, before the checkpoint of that step."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            raise KeyboardInterrupt


def test_an_interrupted_cell_resumes_with_its_costs_and_is_evaluated_at_every_step(tmp_path, monkeypatch):
    monkeypatch.setenv("TRL_PERCEPTION_CACHE", str(tmp_path / "cache"))
    data = {"dataset_name": "synthetic", "synthetic": {"size": 4, "seed": 1, "families": ["scene_color"]}}
    evaluation = {"data": "synthetic", "synthetic": {"size": 4, "seed": 5}, "max_new_tokens": 8}
    overrides = {**SMALL, "max_steps": 3, "use_cpu": True}
    settings = {"methods": ["grpo/tiny"], "seeds": [1], "models": ["tiny"], "evaluate_every": 1, "overrides": overrides}
    config = read_study(written(tmp_path, train=data, evaluation=evaluation, **settings))
    base, cell = cells_of(config)
    for one in (base, cell):
        os.close(one.claim())
    watch = worker.CostLog

    def watched(trainer, of):
        trainer.add_callback(watch(trainer, of))
        return Killed()

    with monkeypatch.context() as patch:
        patch.setattr(worker, "CostLog", watched)
        with pytest.raises(KeyboardInterrupt):
            worker.train_cell(cell)
    before = json.loads((cell.folder / "cost.json").read_text())
    assert [point["step"] for point in before] == [1, 2]
    worker.train_cell(worker.read_cell(str(cell.folder)))
    points = json.loads((cell.folder / "cost.json").read_text())
    assert [(point["step"], point["rollouts"]) for point in points] == [(1, 8), (2, 16), (3, 24)]
    assert points[:1] == before[:1]  # what came after the checkpoint was used again, and counts once
    assert points[1]["tokens"] == before[1]["tokens"]
    for key in ("seconds", "processor_seconds", "tokens"):
        used = [point[key] for point in points]
        assert used == sorted(set(used))
    for one in (base, cell):
        worker.evaluate_cell(one)
    assert not list(cell.run.glob("checkpoint-*"))
    assert cell.is_complete
    figures = collect(config, [base, cell])["models"]["tiny"]["methods"]["grpo"]
    assert [step for step, *_ in figures["curves"]["accuracy"]] == [0, 1, 2, 3]
    assert [step for step, *_ in figures["curves"]["reward"]] == [1, 2, 3]
    assert figures["evidence"] is None or 0 <= figures["evidence"]["share"] <= 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_that_is_killed_resumes_and_its_parts_are_joined(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRL_PERCEPTION_CACHE", str(tmp_path / "cache"))
    command = [
        sys.executable,
        "-m",
        "trl_perception.cli.study",
        "--config",
        "study/smoke",
        "--output",
        str(tmp_path / "out"),
    ]
    killed = subprocess.Popen([*command, "--cell", "1/2"], start_new_session=True, stderr=subprocess.DEVNULL)
    checkpoint = tmp_path / "out/cells/pgpo/tiny/seed-2/run/checkpoint-2/complete.json"
    while not checkpoint.is_file():
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "out/cells/pgpo/tiny/seed-2/complete.json").is_file()
    for part in ("2/2", "1/2"):
        subprocess.run([*command, "--cell", part], check=True, stderr=subprocess.DEVNULL)
    log = (tmp_path / "out/cells/pgpo/tiny/seed-2/log.txt").read_text()
    assert log.count("-- train") == 2
    assert "resuming from checkpoint-" in log
    results = json.loads((tmp_path / "out/study.json").read_text())
    assert results["cells"] == {"complete": 5, "missing": []}
    of_model = results["models"]["tiny"]
    assert of_model["rows"] == 28
    assert set(of_model["methods"]) == {"grpo", "pgpo"}
    assert of_model["methods"]["pgpo"]["equal"]["step"]["difference"]["seeds"] == 2
    assert all(figures["evidence"] is not None for figures in of_model["methods"].values())
    logs = {file: file.stat().st_mtime for file in tmp_path.rglob("log.txt")}
    main(["study", "--config", "study/smoke", "--output", str(tmp_path / "out")])
    assert {file: file.stat().st_mtime for file in tmp_path.rglob("log.txt")} == logs  # nothing was run again
    assert "5 of 5 cells are complete." in capsys.readouterr().out


@pytest.mark.slow
def test_a_cell_that_fails_ends_the_command_with_its_name(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("TRL_PERCEPTION_CACHE", str(tmp_path / "cache"))
    wrong = {"name": "wrong", "recipe": "grpo/tiny", "overrides": {"num_generations": 5}}
    file = written(
        tmp_path, methods=["grpo/tiny", wrong], models=["tiny"], seeds=[1], overrides={**SMALL, "max_steps": 2}
    )
    with pytest.raises(SystemExit, match="1 of the cells failed: wrong, tiny, seed 1"):
        main(["study", "--config", file, "--workers", "2"])
    said = capfd.readouterr()
    assert "no multiple of num_generations (5)" in said.err.replace("\n", " ")
    assert "2 of 3 cells are complete, 1 are left." in said.out
