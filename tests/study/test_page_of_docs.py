"""The study of this package: its configuration, its rows, and the figures of the page."""

import json
from pathlib import Path

from benchmarks import study
from benchmarks.gradient_variance import as_markdown as gradients_as_markdown
from benchmarks.performance_table import with_table
from trl_perception.study.configuration import read_study
from trl_perception.study.table import as_markdown
from trl_perception.trainers import TRAINERS

DOCS = Path(__file__).parents[2] / "docs"
NOT_RUN = "Not run yet for this version.\n"


def test_the_page_shows_the_tables_of_the_files():
    page = (DOCS / "study.md").read_text()
    for name, file, shown in (
        ("study", "study.json", as_markdown),
        ("ablations", "ablations.json", as_markdown),
        ("gradients", "gradients.json", gradients_as_markdown),
    ):
        figures = DOCS / file
        table = shown(json.loads(figures.read_text())) if figures.is_file() else NOT_RUN
        assert with_table(page, table, name) == page


def test_every_method_is_studied_on_the_same_rows_and_seeds():
    config = read_study(str(study.STUDY))
    assert {method.recipe["trainer"] for method in config.methods} == set(TRAINERS)
    assert (len(config.seeds), config.train["synthetic"]["size"]) == (8, 512)
    assert config.train["synthetic"]["seed"] != study.SEED
    assert Path(config.evaluation["data"]) == study.ROWS
    outputs = [study.read_recipe(recipe).output for recipe in study.MODELS]
    assert config.models == (outputs[0],)
    teachers = {method.recipe.get("teacher_model_name_or_path") for method in config.methods}
    assert teachers == {None, outputs[1]}


def test_every_ablation_changes_a_setting_of_its_method():
    config = read_study(str(study.STUDY.with_name("ablations.yaml")))
    assert len(config.seeds) == 4
    seen = [dict(method.recipe) for method in config.methods]
    assert all(one not in seen[:number] for number, one in enumerate(seen))
    assert {method["trainer"] for method in seen} == {"grpo", "appo", "ktr", "pgpo", "ral"}


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
