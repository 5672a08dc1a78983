"""The page on reliability promises only what a test holds, and shows the figures that the soak wrote."""

import ast
import json
import re
from pathlib import Path

from benchmarks.soak import METHODS, as_markdown, holds

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text()


def functions(file):
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_promise_names_tests_that_exist():
    rows = [line for line in PAGE.splitlines() if line.startswith("|") and "::" in line]
    assert len(rows) >= 20
    for row in rows:
        _, promise, tests, _ = row.split("|")
        named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", tests)
        assert named, promise
        assert [name for file, name in named if name not in functions(ROOT / file)] == [], promise


def test_the_soak_is_the_files_and_every_method_kept_its_size():
    result = json.loads((ROOT / "docs" / "reliability.json").read_text())
    assert as_markdown(result) in PAGE
    assert tuple(result["methods"]) == METHODS
    assert all(found["steps"] == 1000 and holds(found) for found in result["methods"].values())


def test_growth_is_told_from_steadiness():
    steady = {"growth": 0.019, "files": [6, 6], "threads": [3, 3]}
    assert holds(steady)
    assert not holds({**steady, "growth": 0.02})
    assert not holds({**steady, "files": [6, 7]})
    assert not holds({**steady, "threads": [3, 4]})
