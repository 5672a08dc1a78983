"""The models that the study has trained, on clips in other colors: `python -m benchmarks.study_colors [--json FILE]`.

Red, green and blue of each held-out clip are shifted by a random amount each. All else is as in benchmarks/study.yaml. The
predictions stay in the folders of the cells, so that the command resumes.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.study import STUDY, of_cells
from trl_perception.evaluation import EvaluationSettings, evaluate
from trl_perception.evaluation.tables import aligned
from trl_perception.study import compare_methods
from trl_perception.study.cells import BASE, Cell
from trl_perception.study.configuration import read_study
from trl_perception.study.table import cell as shown
from trl_perception.study.table import percent, points

CLIPS = {"size": 700, "seed": 27, "tint": 40.0}
FOLDER = "other-colors"


def measured(cell: Cell) -> dict[str, float]:
    """Whether the answer to each row is right, of the trained model of a cell, or of the model before training."""
    settings = cell.settings["evaluation"] | {"data": "synthetic", "synthetic": CLIPS, "by": ["family"]}
    model = cell.model if cell.method == BASE else str(cell.run)
    evaluation = evaluate(EvaluationSettings(**settings, model=model, output=str(cell.folder / FOLDER)))
    columns = evaluation.predictions.select(["id", "pass_rate"]).to_pydict()
    return dict(zip(columns["id"], columns["pass_rate"], strict=True))


def compare(right: Mapping[tuple[str, int], Mapping[str, float]], baseline: str) -> dict:
    """The figures of each method. Args: right: {(method, seed): {row: 1 or 0}}."""
    outcomes = [(*run, row, value) for run, of_run in right.items() for row, value in of_run.items()]
    methods = {name: asdict(figures) for name, figures in compare_methods(outcomes, baseline).items()}
    return {"clips": CLIPS, "baseline": baseline, "methods": methods}


def as_markdown(result: Mapping) -> str:
    """A row a method."""
    lines = [["method", "other colors", "detectable"]]
    for name, figures in result["methods"].items():
        lines.append(["before training" if name == BASE else name, shown(figures), points(figures["detectable"])])
    return aligned(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = read_study(str(STUDY))
    result = compare(of_cells(config, measured, lambda right: percent(fmean(right.values()))), config.baseline)
    print(as_markdown(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
