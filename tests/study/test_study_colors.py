"""The models that a study has trained, on clips in other colors."""

from dataclasses import dataclass

import pytest

from benchmarks import study, study_colors
from trl_perception.evaluation import run
from trl_perception.study.cells import BASE, Cell


def test_methods_are_compared_by_seed_and_row():
    right = {
        (BASE, 1): {"a": 0.0, "b": 0.0},
        (BASE, 2): {"a": 0.0, "b": 0.0},
        ("grpo", 1): {"a": 1.0, "b": 0.0},
        ("grpo", 2): {"a": 1.0, "b": 0.0},
        ("ral", 1): {"a": 1.0, "b": 1.0},
        ("ral", 2): {"a": 1.0, "b": 0.0},
    }
    found = study_colors.compare(right, "grpo")
    # GRPO 2 of 4 right, RAL 3 of 4: 75 - 50 = 25 points
    assert found["methods"]["ral"]["difference"]["mean"] == pytest.approx(0.25)
    shown = study_colors.as_markdown(found)
    assert "before training" in shown
    assert "75.0 (+25.0 [" in shown


def test_a_cell_is_evaluated_on_tinted_clips_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study_colors, "CLIPS", {"size": 7, "seed": 27, "tint": 40.0})
    evaluation = {"data": "runs/rows.jsonl", "by": ["family", "clips"], "rewards": ["accuracy"], "max_new_tokens": 8}
    cell = Cell(BASE, "tiny", None, tmp_path / "cell", {"evaluation": evaluation})
    right = study_colors.measured(cell)
    assert len(right) == 7
    assert set(right.values()) <= {0.0, 1.0}
    monkeypatch.setattr(run, "complete_batches", None)
    assert study_colors.measured(cell) == right


def test_complete_cells_are_measured_and_the_model_before_training_stands_for_all_seeds(tmp_path, monkeypatch):
    @dataclass(frozen=True)
    class Done(Cell):
        is_complete: bool = True

    cells = [
        Done(BASE, "tiny", None, tmp_path, {}),
        *(Done("grpo", "tiny", seed, tmp_path, {}, is_complete=seed < 3) for seed in (1, 2, 3)),
    ]
    monkeypatch.setattr(study, "cells_of", lambda config: cells)

    class Config:
        baseline = "grpo"

    found = study.of_cells(Config, lambda cell: cell.seed, str)
    assert found == {(BASE, 1): None, (BASE, 2): None, ("grpo", 1): 1, ("grpo", 2): 2}
