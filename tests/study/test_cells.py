"""Cells: their folders, parts, locks, and the processes that run them."""

import json
import os
from dataclasses import replace

import pytest

from trl_perception.study import running
from trl_perception.study.cells import CELL, COMPLETE, PROGRESS, Cell, part_of
from trl_perception.study.running import run_cells


@pytest.fixture
def cells(tmp_path, monkeypatch):
    """Makes cells by method whose processes are the stub's."""
    monkeypatch.setattr(running, "WORKER", "tests.study.stub")
    monkeypatch.setattr(running, "POLL_SECONDS", 0.02)

    def make(*methods):
        found = []
        for method in methods:
            settings = {"recipe": {"max_steps": 5, "learning_rate": 1e-4}, "evaluation": {"data": "rows.jsonl"}}
            settings |= {"evaluate_every": 2, "model": "tiny", "seed": 1, "version": "1", "trainer": None}
            cell = Cell(method, "tiny", 1, tmp_path / method / "tiny" / "seed-1", settings)
            cell.folder.mkdir(parents=True)
            (cell.folder / "digest").write_text(json.dumps({"digest": cell.digest}))
            found.append(cell)
        return found

    return make


def phases(cell):
    return [json.loads(line) for line in (cell.folder / "phases.jsonl").read_text().splitlines()]


def test_a_cell_is_evaluated_at_every_multiple_and_at_its_end(cells):
    (cell,) = cells("a")
    assert cell.steps == [2, 4, 5]
    assert replace(cell, seed=None).steps == [0]


def test_cells_run_side_by_side_with_their_devices_and_only_once(cells):
    made = cells("a", "b", "c")
    assert run_cells(made, workers=2, threads=3, devices=["4", "7"]) == {}
    assert all(cell.is_complete for cell in made)
    ran = [phases(cell) for cell in made]
    assert [[one["phase"] for one in of_cell] for of_cell in ran] == [["train", "evaluate"]] * 3
    assert ran[0][0]["started"] < ran[1][1]["ended"]
    assert ran[1][0]["started"] < ran[0][1]["ended"]
    assert ran[2][0]["started"] > min(ran[0][1]["ended"], ran[1][1]["ended"])
    assert {of_cell[0]["device"] for of_cell in ran} == {"4", "7"}
    assert "threads 3" in (made[0].folder / "log.txt").read_text()
    assert run_cells(made, workers=2, threads=3) == {}
    assert [len(phases(cell)) for cell in made] == [2, 2, 2]


def test_training_and_evaluation_are_one_process_but_on_an_accelerator(cells):
    shared, apart = cells("a", "b")
    run_cells([shared], workers=1, threads=1)
    run_cells([apart], workers=1, threads=1, devices=["0"])
    assert [len({one["process"] for one in phases(cell)}) for cell in (shared, apart)] == [1, 2]


def test_a_cell_that_fails_is_named_with_its_log_and_the_others_finish(cells, capfd):
    first, fails, last = cells("a", "fails", "b")
    failed = run_cells([first, fails, last], workers=1, threads=1)
    assert list(failed) == ["fails, tiny, seed 1"]
    assert failed["fails, tiny, seed 1"].endswith("The disk is full.")
    assert "10 %" not in failed["fails, tiny, seed 1"]  # what a bar showed before its last state
    assert "The disk is full." in capfd.readouterr().err
    assert (first.is_complete, fails.is_complete, last.is_complete) == (True, False, True)


def test_a_cell_that_another_process_runs_is_left_to_it(cells):
    (cell,) = cells("a")
    lock = cell.claim()
    assert cell.claim() is None
    os.close(lock)
    os.close(cell.claim())


def test_a_cell_that_was_killed_counts_only_what_it_resumes_from(cells):
    (cell,) = cells("a")
    os.close(cell.claim())
    (cell.folder / PROGRESS).write_text("0.9")
    assert cell.progress == 0.9
    os.close(cell.claim())
    assert cell.progress == 0.0


def test_a_cell_with_other_settings_is_refused_and_never_mixed(cells):
    (cell,) = cells("a")
    run_cells([cell], workers=1, threads=1)
    other = replace(cell, settings={**cell.settings, "recipe": {"max_steps": 5, "learning_rate": 2e-4}})
    assert not other.is_complete
    with pytest.raises(ValueError, match=r"recipe\.learning_rate: 0.0001 there, 0.0002 now"):
        other.require_own_folder()
    with pytest.raises(ValueError, match="other settings"):
        other.claim()
    assert json.loads((cell.folder / CELL).read_text()) == cell.settings
    assert json.loads((cell.folder / COMPLETE).read_text()) == {"digest": cell.digest}


def test_parts_hold_every_cell_once():
    cells = list(range(10))
    parts = [part_of(cells, f"{number}/4") for number in range(1, 5)]
    assert sorted(cell for part in parts for cell in part) == cells
    assert part_of(cells, None) == cells
    for wrong in ("0/4", "5/4", "4", "a/b"):
        with pytest.raises(ValueError, match="1 <= i <= n is wanted"):
            part_of(cells, wrong)
