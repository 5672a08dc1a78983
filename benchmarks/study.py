"""Run a study and put its tables into docs/study.md: `python -m benchmarks.study --config study/full`."""

import argparse
import json
from pathlib import Path

from benchmarks.performance_table import with_table
from trl_perception.cli.study import main as study
from trl_perception.study.configuration import read_study
from trl_perception.study.table import as_markdown

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="study/full")
    options = parser.parse_args()
    study(["--config", options.config])
    results = json.loads((read_study(options.config).output / "study.json").read_text())
    (DOCS / "study.json").write_text(json.dumps(results, indent=1) + "\n")
    page = DOCS / "study.md"
    page.write_text(with_table(page.read_text(), as_markdown(results)))


if __name__ == "__main__":
    main()
