"""The signals of the models that a study has trained."""

import pytest

from benchmarks import study_signals
from trl_perception.study.cells import BASE, Cell

FIRST, *OTHERS = study_signals.COLUMNS


def test_a_row_has_the_mean_of_all_its_values():
    right, wrong = {"a": [0.2, 0.4], "b": [0.6]}, {"a": [0.9]}
    # (0.2 + 0.4 + 0.9) / 3 = 0.5
    assert study_signals.row_means([right, wrong]) == pytest.approx({"a": 0.5, "b": 0.6})


def test_methods_are_paired_by_seed_and_row():
    def cell(*values):
        return {title: dict(zip("abc", values, strict=False)) for title in study_signals.COLUMNS}

    values = {
        ("grpo", 1): cell(0.1, 0.3, 0.9),
        ("grpo", 2): cell(0.3, 0.5),
        ("ral", 1): cell(0.2, 0.3),
        ("ral", 2): cell(0.5, 0.8),
    }
    result = study_signals.compare(values)
    # rows a and b: GRPO (0.1 + 0.3 + 0.3 + 0.5) / 4 = 0.3; RAL (0.2 + 0.3 + 0.5 + 0.8) / 4 = 0.45
    assert result["grpo"][FIRST] == {"mean": pytest.approx(0.3), "rows": 2, "seeds": 2}
    found = result["ral"][FIRST]
    assert (found["mean"], found["difference"]) == (pytest.approx(0.45), pytest.approx(0.15))
    assert found["low"] < 0.15 < found["high"]
    shown = study_signals.as_markdown({"methods": result})
    assert "0.300 |" in shown
    assert "0.450 (+0.150 [" in shown


def test_a_cell_is_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr(study_signals, "ROWS", 24)
    cell = Cell(BASE, "tiny", None, tmp_path, {})
    found = study_signals.measured(cell)
    shares = found[FIRST].values()
    assert all(0 < share < 1 for share in shares)
    order, other = (found[title] for title in OTHERS[:2])
    assert order
    assert other
    assert not set(order) & set(other)
    monkeypatch.setattr(study_signals, "signals", None)
    assert study_signals.measured(cell) == found
