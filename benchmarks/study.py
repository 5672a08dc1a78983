"""Run a study of this package: `python -m benchmarks.study [--config FILE]`.

The studies are benchmarks/study.yaml, tuning.yaml and ablations.yaml; the figures go to docs/NAME.json, and from there into
docs/study.md by `benchmarks.study_page`.

The models and the held-out rows are made where they are missing: `recipes/sft` trains a model and its teacher, and `held_out`
writes rows with a column `clips`: "as trained", or how their clips differ from those that are trained on.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from trl_perception.assets.train_tiny import main as train_model
from trl_perception.assets.train_tiny import read_recipe
from trl_perception.cli.study import main as study
from trl_perception.data import make_synthetic_dataset
from trl_perception.study.cells import Cell, cells_of
from trl_perception.study.configuration import StudyConfig, read_study
from trl_perception.study.results import collect

Measured = TypeVar("Measured")
ROOT = Path(__file__).parents[1]
STUDY = ROOT / "benchmarks" / "study.yaml"
MODELS = [ROOT / "recipes" / "sft" / name for name in ("study_pretrained.yaml", "study.yaml", "study_teacher.yaml")]
ROWS = Path("runs/study-rows/held_out.jsonl")
SEED = 23
CLIPS = {  # rows of each kind, and the settings of its clips
    "as trained": (1400, {}),
    "longer": (350, {"seconds": 8.0}),
    "busier": (350, {"distractors": 4, "noise": 16.0}),
    "more scenes": (350, {"scenes": (4, 5), "families": ["scene_color"]}),
}
CONTRASTS = [  # a method, and the one other than GRPO that its question compares it with
    ("appo", "appo_random"),
    ("appo_evidence", "appo_random"),
    ("attn_distill", "distill_words"),
    ("ral", "ral_0"),
    ("t_grpo", "t_grpo_2e-4"),
]


def held_out(file: Path) -> None:
    """Write the rows that the study evaluates on, with their clips beside them."""
    rows = []
    for number, (kind, (size, settings)) in enumerate(CLIPS.items()):
        folder = file.parent / kind.replace(" ", "-")
        dataset = make_synthetic_dataset(folder, size=size, seed=SEED + number, split="test", **settings)
        rows += [{**row, "id": f"{kind} {row['id']}", "clips": kind} for row in dataset]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def contrasts(config: StudyConfig) -> list[dict[str, Any]]:
    """The difference of each pair of [`CONTRASTS`], with its interval, after equal updates; of those that have run."""
    found, names = [], {method.name for method in config.methods}
    for method, other in CONTRASTS:
        if not {method, other} <= names:
            continue
        results = collect(replace(config, baseline=other), cells_of(config))
        for of_model in results["models"].values():
            difference = of_model["methods"].get(method, {}).get("equal", {}).get("step", {}).get("difference")
            if difference is not None:
                found.append({"method": method, "other": other, "difference": difference})
    return found


def of_cells(
    config: StudyConfig, measure: Callable[[Cell], Measured], shown: Callable[[Measured], str]
) -> dict[tuple[str, int], Measured]:
    """What is measured of each complete cell, by method and seed; the model before training is the same for all seeds.

    Args: shown: what is printed of a cell.
    """
    complete = [cell for cell in cells_of(config) if cell.is_complete]
    seeds = sorted({cell.seed for cell in complete if cell.method == config.baseline})
    found = {}
    for cell in complete:
        of_cell = measure(cell)
        print(f"{cell.name}: {shown(of_cell)}", flush=True)
        found |= {(cell.method, seed): of_cell for seed in (seeds if cell.seed is None else [cell.seed])}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=str(STUDY))
    options = parser.parse_args()
    for recipe in MODELS:
        if not Path(read_recipe(recipe).output).is_dir():
            train_model(["--config", str(recipe)])
    if not ROWS.is_file():
        held_out(ROWS)
    study(["--config", options.config])
    config, name = read_study(options.config), Path(options.config).stem
    results = json.loads((config.output / "study.json").read_text())
    results["contrasts"] = contrasts(config)
    (ROOT / "docs" / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
