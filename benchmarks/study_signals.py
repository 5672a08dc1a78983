"""What training has changed in the methods' signals: `python -m benchmarks.study_signals [--json FILE]`.

Every model that the study has trained samples answers to the same clips, as in `benchmarks.evidence`:

- the share of its attention to the video that falls on frames with evidence;
- how its tokens depend on the order of the frames, |log p in order - log p shuffled|, in questions of order and others;
- how its answers depend on the clip: PGPO's dependency of answer tokens.

A value is the mean over the tokens of a row. Differences are paired by seed and row, as those of the study. What was
measured stays in the folder of a cell, so that the command resumes.
"""

import argparse
import json
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.evidence import signals, video_rows
from benchmarks.study import STUDY, of_cells
from trl_perception.evaluation.store import write_text
from trl_perception.evaluation.tables import aligned
from trl_perception.study import compare_methods
from trl_perception.study.cells import BASE, Cell
from trl_perception.study.configuration import read_study

METHODS = ("grpo", "appo", "pgpo", "ktr", "ral", "attn_distill", "distill_words")
BASELINE = "grpo"
ROWS, SEED, GENERATIONS = 140, 25, 8
FILE = "signals.json"
ORDER, OTHER = "order", "other temporal"

# title: (signals of benchmarks.evidence, whether it takes rows of a kind)
COLUMNS = {
    "attention on evidence": (
        ("ral/attention on evidence, right completions", "ral/attention on evidence, wrong completions"),
        None,
    ),
    "order of frames, questions of order": (("ktr/temporal question",), ORDER),
    "order of frames, of time, count and k-th scene": (("ktr/temporal question",), OTHER),
    "clip, answer tokens": (("pgpo/visual question/answer tokens",), None),
}


def measured(cell: Cell) -> dict[str, dict[str, float]]:
    """The mean of each column's signal by row, from the cell's folder or from its model."""
    file = cell.folder / FILE
    if not file.is_file():
        model = cell.model if cell.method == BASE else str(cell.run)
        with tempfile.TemporaryDirectory() as folder:
            rows = video_rows(folder, ROWS, SEED)
            kinds = {row["id"]: ORDER if row["family"] == "event_order" else OTHER for row in rows}
            found = signals(model, rows, GENERATIONS, SEED)
        means = {title: row_means([found[name] for name in names]) for title, (names, _) in COLUMNS.items()}
        for title, (_, kind) in COLUMNS.items():
            means[title] = {row: mean for row, mean in means[title].items() if kind in (None, kinds[row])}
        write_text(file, json.dumps(means) + "\n")
    return json.loads(file.read_text())


def row_means(found: Iterable[Mapping[str, list[float]]]) -> dict[str, float]:
    """The mean of each row over the values that several signals have of it."""
    found = list(found)
    rows = sorted({row for of_rows in found for row in of_rows})
    return {row: fmean(chain.from_iterable(of_rows.get(row, ()) for of_rows in found)) for row in rows}


def compare(values: Mapping[tuple[str, int], Mapping[str, Mapping[str, float]]]) -> dict[str, dict]:
    """The mean of each column by method, and its difference from GRPO's with an interval.

    Args: values: {(method, seed): {column: {row: value}}}.
    """
    result = {}
    for title in COLUMNS:
        shared = set.intersection(*(set(of_cell[title]) for of_cell in values.values()))
        outcomes = [(*cell, row, of_cell[title][row]) for cell, of_cell in values.items() for row in sorted(shared)]
        for method, figures in compare_methods(outcomes, BASELINE).items():
            found = {"mean": figures.accuracy.mean, "rows": len(shared), "seeds": figures.accuracy.seeds}
            if figures.difference is not None:
                found |= {key: getattr(figures.difference, key) for key in ("low", "high")}
                found["difference"] = figures.difference.mean
            result.setdefault(method, {})[title] = found
    return result


def as_markdown(result: Mapping) -> str:
    """A row a method."""
    lines = [["", *COLUMNS]]
    for method, columns in result["methods"].items():
        lines.append(["before training" if method == BASE else method])
        for found in columns.values():
            text = f"{found['mean']:.3f}"
            if found.get("low") is not None:
                text += f" ({found['difference']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}])"
            lines[-1].append(text)
    return aligned(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = read_study(str(STUDY))
    config = replace(config, methods=[method for method in config.methods if method.name in METHODS])

    def shown(found: Mapping[str, Mapping[str, float]]) -> str:
        return ", ".join(f"{fmean(of_rows.values()):.3f}" for of_rows in found.values())

    result = {"methods": compare(of_cells(config, measured, shown))}
    print(as_markdown(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
