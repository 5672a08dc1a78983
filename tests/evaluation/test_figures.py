"""Predictions to figures, by hand."""

import pyarrow as pa
import pytest

from trl_perception.evaluation.figures import figures, pass_rate, row_values
from trl_perception.evaluation.store import schema
from trl_perception.evaluation.tables import figures_table


def prediction(row, accuracy, *, kind="numerical", iou=None, tokens=None, cut=None, left_out=""):
    """One row's prediction; `accuracy` is the list of its scores."""
    return {
        "row": row,
        "id": str(row),
        "prompt": "?",
        "media": [],
        "problem_type": kind,
        "solution": "1",
        "completions": ["x"] * len(accuracy),
        "scores": {"accuracy": accuracy, "temporal_iou": [None] * len(accuracy) if iou is None else iou},
        "pass_rate": pass_rate(accuracy),
        "tokens": tokens or [4] * len(accuracy),
        "cut": cut or [False] * len(accuracy),
        "left_out": left_out,
    }


def table(*rows):
    return pa.Table.from_pylist(list(rows), schema=schema(["accuracy", "temporal_iou"], ["problem_type"]))


def means(found, column="all", label="all"):
    return {name: figure.mean for name, figure in found[column][label].items()}


def test_pass_rate_is_the_share_from_one_half():
    # 0.5 and 1.0 are right, 0.49 and 0 are not
    assert pass_rate([0.5, 0.49, 1.0, 0.0]) == 0.5
    assert pass_rate([]) is None
    assert pass_rate([1.0, None]) is None


def test_greedy_figures_by_hand():
    predictions = table(
        prediction(0, [1.0], tokens=[6]),
        prediction(1, [0.0], cut=[True], tokens=[10]),
        prediction(2, [0.4], kind="temporal grounding", iou=[0.4], tokens=[2]),
        prediction(3, [0.6], kind="temporal grounding", iou=[0.6], tokens=[2]),
        prediction(4, [], left_out="m.mp4: not there"),
    )
    found = figures(predictions, row_values(predictions), ["problem_type"], resamples=50, seed=0)
    # right: rows 0 and 3 of 4 (0.6 >= 0.5 > 0.4); mean reward (1 + 0 + .4 + .6) / 4; IoU over rows 2 and 3
    assert means(found) == pytest.approx(
        {
            **{"accuracy": 0.5, "reward/accuracy": 0.5, "tokens": 5.0, "cut": 0.25},
            **{"miou": 0.5, "iou@0.3": 1.0, "iou@0.5": 0.5},
        }
    )
    assert means(found, "problem_type", "numerical") == pytest.approx(
        {"accuracy": 0.5, "reward/accuracy": 0.5, "tokens": 8.0, "cut": 0.5}
    )
    assert found["all"]["all"]["accuracy"].rows == 4
    assert found["all"]["all"]["miou"].rows == 2


def test_sampled_figures_by_hand():
    predictions = table(prediction(0, [1.0, 0.0, 0.0, 0.0]), prediction(1, [1.0, 1.0, 0.0, 0.5]))
    found = means(figures(predictions, row_values(predictions), [], resamples=50, seed=0))
    # avg@4: (1/4 + 3/4) / 2. pass@2: (1 - C(3,2)/C(4,2) + 1 - C(1,2)/C(4,2)) / 2 = (.5 + 1) / 2. pass@4: both rows.
    assert found["avg@4"] == pytest.approx(0.5)
    assert found["pass@2"] == pytest.approx(0.75)
    assert found["pass@4"] == 1.0
    assert found["reward/accuracy"] == pytest.approx((0.25 + 0.625) / 2)
    assert "accuracy" not in found


@pytest.mark.parametrize(
    ("samples", "names"), [(1, []), (2, ["pass@2"]), (3, ["pass@2", "pass@3"]), (8, ["pass@2", "pass@4", "pass@8"])]
)
def test_pass_at_powers_of_two_and_all(samples, names):
    values = row_values(table(prediction(0, [1.0] * samples)))
    assert [name for name in values if name.startswith("pass@")] == names


def test_temporal_iou_is_averaged_over_the_samples_of_a_row():
    predictions = table(prediction(0, [0.2, 0.8], kind="temporal grounding", iou=[0.2, 0.8]))
    values = {name: column.item() for name, column in row_values(predictions).items()}
    assert values["miou"] == pytest.approx(0.5)
    assert (values["iou@0.3"], values["iou@0.5"]) == (0.5, 0.5)


def test_the_table_lines_up_and_shows_what_does_not_apply():
    predictions = table(
        prediction(0, [1.0]), prediction(1, [0.0]), prediction(2, [0.5], kind="temporal grounding", iou=[0.5])
    )
    found = figures(predictions, row_values(predictions), ["problem_type"], resamples=50, seed=0)
    lines = figures_table(found).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 2 + 1 + 2
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells[:2] == ["problem_type: numerical", "2"]
    assert cells[2].startswith("50.0 [")
    assert cells[3] == "-"  # no time spans asked for
    single = [cell.strip() for cell in lines[4].strip("|").split("|")]
    assert single[2] == "100.0"  # one row has no interval
