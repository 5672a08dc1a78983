"""Run a study of this package and put its tables into docs/study.md: `python -m benchmarks.study [--config FILE]`.

The studies are benchmarks/study.yaml, tuning.yaml and ablations.yaml; the figures go to docs/NAME.json.

The models and the held-out rows are made first, where they are missing: `recipes/sft` trains a model and its teacher, and
`held_out` writes rows with a column `clips`: "as trained", or how their clips differ from those that are trained on.
"""

import argparse
import json
from pathlib import Path

from benchmarks.performance_table import with_table
from trl_perception.assets.train_tiny import main as train_model
from trl_perception.assets.train_tiny import read_recipe
from trl_perception.cli.study import main as study
from trl_perception.data import make_synthetic_dataset
from trl_perception.study.configuration import read_study
from trl_perception.study.table import as_markdown

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "benchmarks" / "study.yaml"
MODELS = [ROOT / "recipes" / "sft" / name for name in ("study.yaml", "study_teacher.yaml")]
ROWS = Path("runs/study-rows/held_out.jsonl")
SEED = 23
CLIPS = {  # rows of each kind, and the settings of its clips
    "as trained": (1400, {}),
    "longer": (350, {"seconds": 8.0}),
    "busier": (350, {"distractors": 4, "noise": 16.0}),
    "more scenes": (350, {"scenes": (4, 5), "families": ["scene_color"]}),
}


def held_out(file: Path) -> None:
    """Write the rows that the study evaluates on, with their clips beside them."""
    rows = []
    for number, (kind, (size, settings)) in enumerate(CLIPS.items()):
        folder = file.parent / kind.replace(" ", "-")
        dataset = make_synthetic_dataset(folder, size=size, seed=SEED + number, split="test", **settings)
        rows += [{**row, "id": f"{kind} {row['id']}", "clips": kind} for row in dataset]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


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
    results = json.loads((read_study(options.config).output / "study.json").read_text())
    name, page = Path(options.config).stem, ROOT / "docs" / "study.md"
    (ROOT / "docs" / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    page.write_text(with_table(page.read_text(), as_markdown(results), name))


if __name__ == "__main__":
    main()
