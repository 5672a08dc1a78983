"""The results of complete cells: equal budgets, steps to a reward, evidence in the credit, table and page."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import study as benchmark
from tests.reports.conftest import make_completion, make_group
from tests.reports.test_page import Page
from tests.study.test_configuration import written
from trl_perception.evaluation.tables import aligned
from trl_perception.study.cells import cells_of
from trl_perception.study.configuration import read_study
from trl_perception.study.page import render
from trl_perception.study.results import CellResults, collect, evidence_in_credit, steps_to
from trl_perception.study.table import as_markdown, tables


def test_accuracy_at_a_budget_is_interpolated_between_evaluations():
    used = {"rollouts": np.array([0.0, 100, 300]), "step": np.array([0.0, 2, 4])}
    results = CellResults(None, used, np.array([[0.0, 1], [1, 1], [1, 0]]), [], None)
    # 150 completions: a quarter of the way from 100 to 300.
    assert results.correct_at("rollouts", 150).tolist() == [1, 0.75]
    assert results.correct_at("rollouts", 50).tolist() == [0.5, 1]
    assert results.correct_at("step", 2).tolist() == [1, 1]
    assert results.correct_at("step", 4).tolist() == [1, 0]


def test_steps_to_a_reward_are_counted_on_the_mean_of_a_twentieth():
    rewards = [(float(step), float(step == 10 or step >= 30)) for step in range(1, 61)]  # a twentieth: 3 steps
    assert steps_to(rewards, 0.9) == 32
    assert steps_to(rewards, 0.3) == 10
    assert steps_to(rewards, 1.1) is None


def looking(weights, advantage, *attention):
    """A completion whose tokens have these weights and these values of attention to the frames."""
    completion = make_completion(["a"] * len(attention), advantage=advantage, weights=weights)
    values = [value for of_token in attention for value in of_token]
    signal = {"name": "frame_attention", "kind": "token_frame", "values": values, "tokens": list(range(len(attention)))}
    return completion | {"signals": [signal]}


def test_evidence_in_the_credit_by_hand():
    # Two of four frames show evidence. Credit 2 * 3 on a token that gives them 0.6 of 0.8, and 2 * 1 on one with 0 of 0.4;
    # the other completion has weights of 1: credit 1 on 0.5 of 0.5.
    group = make_group("clip.mp4")
    group["frames"] = [{"medium": 0, "times": [float(second)]} for second in range(4)]
    group["evidence"] = [[1.0, 3.0]]
    group["completions"] = [
        looking([3.0, 1.0], -2.0, [0.2, 0.6, 0, 0], [0.4, 0, 0, 0]),
        looking(None, 1.0, [0, 0.25, 0.25, 0]),
    ]
    share, chance, groups = evidence_in_credit([group])
    assert share == pytest.approx((6 * 0.6 + 1 * 0.5) / (6 * 0.8 + 2 * 0.4 + 1 * 0.5))
    assert (chance, groups) == (0.5, 1)
    assert evidence_in_credit([group | {"evidence": [[0.0, 9.0]]}]) is None


def write_cell(cell, right, costs):
    """A complete cell. right: {step: rows answered correctly of 14}; costs: {step: (rollouts, processor seconds)}."""
    for step, count in right.items():
        table = {"id": [str(i) for i in range(14)], "problem_type": ["x", "y"] * 7}
        table["pass_rate"] = [float(i < count) for i in range(13)] + [None]
        cell.evaluation(step).mkdir(parents=True)
        pq.write_table(pa.table(table), cell.evaluation(step) / "predictions.parquet")
    if costs:
        keys = ("rollouts", "processor_seconds", "seconds", "tokens")
        points = [{"step": s, **dict(zip(keys, (*of, of[1], 10 * of[0]), strict=True))} for s, of in costs.items()]
        (cell.folder / "cost.json").write_text(json.dumps(points))
        cell.run.mkdir()
        log = [{"step": step, "reward": 0.1 * step} for step in range(1, 5)]
        (cell.run / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    (cell.folder / "complete.json").write_text(json.dumps({"digest": cell.digest}))


@pytest.fixture
def study(tmp_path):
    config = read_study(written(tmp_path, models=["tiny"], target_reward=0.25, seeds=[1, 2]))
    cells = cells_of(config)
    for cell in cells:
        if cell.method == "base":
            write_cell(cell, {0: 5}, {})
        elif cell.method == "grpo":
            write_cell(cell, {2: 6, 4: 7 + cell.seed}, {2: (20, 10.0), 4: (40, 20.0)})
        else:  # twice as dear
            write_cell(cell, {2: 7, 4: 11}, {2: (40, 10.0), 4: (80, 40.0)})
    return config, cells


def test_results_of_a_small_study_by_hand(study):
    results = collect(*study)
    of_model = results["models"]["tiny"]
    assert results["cells"] == {"complete": 5, "missing": []}
    assert of_model["rows"] == 13  # one row has no answer that counts
    assert of_model["budgets"] == {"step": 4, "rollouts": 40, "processor_seconds": 20}
    assert of_model["processor_seconds"] == 2 * 20 + 2 * 40
    hard, grpo = of_model["methods"]["hard"]["equal"], of_model["methods"]["grpo"]["equal"]
    assert grpo["step"]["accuracy"]["mean"] == pytest.approx(8.5 / 13)
    assert of_model["methods"]["grpo"]["accuracies"] == [pytest.approx(8 / 13), pytest.approx(9 / 13)]
    assert grpo["step"]["difference"] is None
    assert hard["step"]["difference"]["mean"] == pytest.approx((11 - 8.5) / 13)
    assert hard["rollouts"]["accuracy"]["mean"] == pytest.approx(7 / 13)  # its first evaluation
    assert hard["processor_seconds"]["accuracy"]["mean"] == pytest.approx((7 + (11 - 7) / 3) / 13)
    assert hard["step"]["groups"]["problem_type"]["x"]["accuracy"]["mean"] == pytest.approx(
        6 / 7
    )  # 0, 2, ... 10 of 0 ... 12
    assert of_model["methods"]["hard"]["per_step"] == {
        "seconds": 10,
        "processor_seconds": 10,
        "tokens": 200,
        "rollouts": 20,
    }
    assert of_model["methods"]["hard"]["steps_to_reward"] == {"median": 3, "reached": 2, "seeds": 2}
    assert of_model["methods"]["grpo"]["curves"]["accuracy"] == [
        [0, *[pytest.approx(5 / 13)] * 3],
        [2, *[pytest.approx(6 / 13)] * 3],
        [4, pytest.approx(8.5 / 13), pytest.approx(8 / 13), pytest.approx(9 / 13)],
    ]
    assert json.loads(json.dumps(results)) == results


def test_methods_are_contrasted_with_each_other(study, monkeypatch):
    config, _ = study
    monkeypatch.setattr(benchmark, "CONTRASTS", [("grpo", "hard"), ("grpo", "another")])
    (found,) = benchmark.contrasts(config)  # the one whose methods are there
    assert (found["method"], found["other"]) == ("grpo", "hard")
    assert found["difference"]["mean"] == pytest.approx((8.5 - 11) / 13)


def test_cells_that_are_missing_are_named_and_other_rows_refused(study):
    config, cells = study
    (cells[-1].folder / "complete.json").unlink()
    results = collect(config, cells)
    assert results["cells"] == {"complete": 4, "missing": ["hard, tiny, seed 2"]}
    assert results["models"]["tiny"]["methods"]["hard"]["seeds"] == [1]
    assert "Missing: hard, tiny, seed 2." in as_markdown(results)
    table = pq.read_table(cells[1].evaluation(4) / "predictions.parquet")
    pq.write_table(table.slice(1), cells[1].evaluation(4) / "predictions.parquet")
    with pytest.raises(ValueError, match="has other rows than the evaluation before training"):
        collect(config, cells)


def test_the_table_shows_the_results(study):
    results = collect(*study)
    text = as_markdown(results)
    low, high = (
        100 * results["models"]["tiny"]["methods"]["hard"]["equal"]["step"]["difference"][k] for k in ("low", "high")
    )
    assert f"84.6 (+19.2 [{low:+.1f}, {high:+.1f}])" in text  # 11 / 13, 2.5 / 13
    assert " 3 (2 of 2) |" in text
    for lines in tables(results, results["models"]["tiny"]).values():
        assert len({len(line) for line in lines}) == 1
        assert aligned(lines) in text


def test_the_page_is_one_file_that_loads_nothing_and_says_what_it_draws(study, tmp_path):
    results = collect(*study)
    file = tmp_path / "study.html"
    file.write_text(render(results))
    page = Page(file)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert page.all("script") == []
    for _, attributes in page.tags:
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "prefers-color-scheme: dark" in page.source
    labels = [attributes["aria-label"] for attributes in page.all("svg")]
    assert all(attributes["role"] == "img" for attributes in page.all("svg"))
    assert labels[0].startswith("Difference from grpo in points, all rows: hard +19.2 [")
    assert "hard from 38.5 to 84.6; grpo from 38.5 to 65.4" in labels
    # A row a method, also by group; curves of accuracy and of reward for each method but the baseline.
    assert len(labels) == 3 + 2
    assert page.source.count('class="line c1 other"') == 2  # the baseline is dashed, not of another colour alone
    for lines in tables(results, results["models"]["tiny"]).values():
        assert all(text in page.texts["td"] or text in page.texts["th"] for line in lines for text in line)


def test_names_of_methods_are_text_on_the_page(study):
    results = collect(*study)
    methods = results["models"]["tiny"]["methods"]
    methods["<script>&"] = methods.pop("hard")
    assert "<script>&" not in render(results)


def test_a_single_seed_has_points_without_intervals(study):
    config, cells = study
    for cell in cells:
        if cell.seed == 2:
            (cell.folder / "complete.json").unlink()
    results = collect(config, cells)
    assert "(+23.1)" in as_markdown(results)  # 11 - 8 of 13
    assert 'class="estimate c0"' in render(results)
