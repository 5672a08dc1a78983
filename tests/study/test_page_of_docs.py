"""The page of the study shows the figures of its file, or none."""

import json
from pathlib import Path

from benchmarks.performance_table import with_table
from trl_perception.study.table import as_markdown

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_shows_the_tables_of_the_file():
    page, file = (DOCS / "study.md").read_text(), DOCS / "study.json"
    table = as_markdown(json.loads(file.read_text())) if file.is_file() else "Not run yet for this version.\n"
    assert with_table(page, table) == page
