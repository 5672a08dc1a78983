"""The study of this package: its configuration, its rows, and the figures of the page."""

import json
from pathlib import Path

from benchmarks import study, study_page
from benchmarks.performance_table import with_table
from trl_perception.study.configuration import read_study
from trl_perception.trainers import TRAINERS


def test_the_page_shows_the_figures_of_the_files():
    page = (study_page.DOCS / "study.md").read_text()
    for name, block in study_page.blocks().items():
        assert with_table(page, block, name) == page, name


def test_tuning_is_shown_by_method_and_learning_rate():
    def mean(value):
        return {"accuracy": {"mean": value}}

    runs = {"grpo_1e-4": 0.551, "grpo_2e-4": 0.561, "attn_distill_1e-4": 0.59, "attn_distill_2e-4": 0.58}
    of_model = {
        "rows": 700,
        "budgets": {"step": 60.0},
        "processor_seconds": 1800.0,
        "before": mean(0.4714),
        "methods": {name: {"equal": {"step": mean(value)}} for name, value in runs.items()},
    }
    text = study_page.tuning_as_markdown({"settings": {"seeds": [1, 2]}, "models": {"student": of_model}})
    assert text.startswith(
        "Percent right of 700 rows after 60 updates by learning rate, mean of 2 runs; 47.1 before training."
    )
    assert [line.split() for line in text.splitlines()[-2:]] == [
        ["|", "grpo", "|", "55.1", "|", "**56.1**", "|"],
        ["|", "attn_distill", "|", "**59.0**", "|", "58.0", "|"],
    ]


def test_ablations_have_a_row_for_each_setting():
    def method(mean, difference, share):
        equal = {"accuracy": {"mean": mean}, "difference": difference, "detectable": None if not difference else 0.025}
        return {"equal": {"step": equal}, "evidence": {"share": share, "chance": 0.32}}

    of_model = {
        "rows": 700,
        "budgets": {"step": 80.0, "rollouts": 5120, "processor_seconds": 60.0},
        "processor_seconds": 3600.0,
        "detectable": 0.025,
        "before": {"accuracy": {"mean": 0.47}},
        "methods": {
            "grpo": method(0.55, None, 0.31),
            "ktr_50": method(0.56, {"mean": 0.01, "low": -0.01, "high": 0.03}, 0.4),
        },
    }
    settings = {"seeds": [1, 2, 3, 4], "baseline": "grpo", "tuning": "none"}
    figures = {"settings": settings, "cells": {"missing": []}, "models": {"student": of_model}}
    text = study_page.ablations_as_markdown(figures)
    assert "700 rows, 47.0 before training" in text
    assert [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines()[-2:]] == [
        ["grpo", "55.0", "-", "31.0", "32.0"],
        ["ktr_50", "56.0 (+1.0 [-1.0, +3.0])", "2.5", "40.0", "32.0"],
    ]


def differing(mean, low, high):
    return {"difference": {"mean": mean, "low": low, "high": high}}


def test_answers_name_the_methods_whose_interval_leaves_out_zero(tmp_path):
    def method(overall, order):
        groups = {"family": {"event_order": differing(*order)}}
        curve = [[0.0, 0.5, 0.5, 0.5], [80.0, 0.6, 0.55, 0.65]]
        return {
            "equal": {"step": differing(*overall) | {"groups": groups}},
            "accuracies": [0.59, 0.61],  # standard deviation sqrt(0.01^2 + 0.01^2)
            "curves": {"accuracy": curve, "reward": curve},
        }

    of_model = {
        "detectable": 0.021,
        "before": {"groups": {"family": {"event_order": {}}}},
        "methods": {
            "grpo": method((0, 0, 0), (0, 0, 0)),
            "ktr": method((0.01, -0.01, 0.03), (0.05, 0.02, 0.08)),
            "oracle": method((0.04, 0.01, 0.07), (0, -0.01, 0.01)),
        },
    }
    contrast = {"method": "appo", "other": "appo_random"} | differing(0.002, -0.01, 0.014)
    figures = {"settings": {"baseline": "grpo"}, "models": {"m": of_model}, "contrasts": [contrast]}
    order = study_page.ORDER
    seen = {
        name: {order: {"mean": mean, "difference": mean - 0.2, "low": -0.1, "high": 0.3}}
        for name, mean in (("base", 0.1), ("grpo", 0.2), ("ktr", 0.4))
    }
    noise = {"methods": {"pgpo": {"over_baseline": 0.9, "low": 0.8, "high": 1.01}}}
    colors = {"methods": {"grpo": {"difference": None}, "oracle": differing(0.03, 0.01, 0.05)}}
    text = "".join(study_page.answers(figures, colors, {"methods": seen}, noise))
    assert text.splitlines() == [
        "- The smallest true difference from grpo that the study finds with a probability of 80 %: 2.1 points.",
        "- Runs of grpo: 59.0 to 61.0 by seed, standard deviation 1.4 points.",
        "- Methods that differ from grpo on all rows: oracle +4.0 [+1.0, +7.0].",
        "- On family event_order: ktr +5.0 [+2.0, +8.0].",
        "- On clips in other colors: oracle +3.0 [+1.0, +5.0].",
        "- ktr on event_order, for which it is made: +5.0 [+2.0, +8.0].",
        "- appo minus appo_random: +0.2 [-1.0, +1.4].",
        "- Credit that knows the evidence (oracle): +4.0 [+1.0, +7.0].",
        f"- Signal, {order}: 0.100 base, 0.200 grpo, 0.400 ktr (minus grpo +0.200 [-0.100, +0.300]).",
        "- Noise of PGPO's gradient over grpo's: 0.90 [0.80, 1.01].",
    ]
    study_page.plot(figures, tmp_path / "study.svg")
    assert "difference from grpo" in (tmp_path / "study.svg").read_text()


def test_every_method_is_studied_on_the_same_rows_and_seeds():
    config = read_study(str(study.STUDY))
    assert {method.recipe["trainer"] for method in config.methods} == set(TRAINERS)
    assert (len(config.seeds), config.train["synthetic"]["size"]) == (8, 512)
    assert config.train["synthetic"]["seed"] != study.SEED
    assert Path(config.evaluation["data"]) == study.ROWS
    _, student, teacher = (study.read_recipe(recipe).output for recipe in study.MODELS)
    assert config.models == (student,)
    teachers = {method.recipe.get("teacher_model_name_or_path") for method in config.methods}
    assert teachers == {None, teacher}


def test_methods_have_the_learning_rate_of_their_tuning():
    (of_model,) = study_page.read("tuning")["models"].values()
    best = {}
    for name, figures in of_model["methods"].items():
        method, _, rate = name.rpartition("_")
        best.setdefault(method, []).append((figures["equal"]["step"]["accuracy"]["mean"], float(rate)))
    for file in ("study.yaml", "ablations.yaml"):
        taken = {method.name: method.recipe for method in read_study(str(study.STUDY.with_name(file))).methods}
        for method, rates in best.items():
            if method in taken:
                assert taken[method]["learning_rate"] == max(rates)[1], (file, method)


def test_every_ablation_changes_a_setting_of_its_method():
    config = read_study(str(study.STUDY.with_name("ablations.yaml")))
    assert len(config.seeds) == 4
    seen = [dict(method.recipe) for method in config.methods]
    assert all(one not in seen[:number] for number, one in enumerate(seen))
    assert {method["trainer"] for method in seen} == {"grpo", "appo", "ktr", "pgpo", "ral", "t_grpo"}


def test_held_out_rows_say_how_their_clips_differ(tmp_path, monkeypatch):
    monkeypatch.setattr(
        study,
        "CLIPS",
        {kind: (7 if kind == "as trained" else 2, settings) for kind, (_, settings) in study.CLIPS.items()},
    )
    study.held_out(tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [row["clips"] for row in rows] == [
        *7 * ["as trained"],
        *2 * ["longer"],
        *2 * ["busier"],
        *2 * ["more scenes"],
    ]
    assert len({row["id"] for row in rows}) == 13
    assert {row["duration"] for row in rows if row["clips"] == "longer" and row["videos"]} == {8.0}
    assert {len(row["family"]) > 0 and all(Path(path).is_file() for path in row["videos"]) for row in rows} == {True}
