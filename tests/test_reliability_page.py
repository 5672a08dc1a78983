"""The reliability page promises only what a test checks, and shows the figures of the soak."""

import ast
import json
import re
from pathlib import Path

from benchmarks.soak import as_markdown, holds
from tests.promises import PROMISES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text()


def functions(file):
    return {node.name for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_promise_is_tested_and_on_the_page():
    prose = re.sub(r"<!-- table -->.*<!-- end of table -->", "", PAGE, flags=re.DOTALL)
    bullets = {" ".join(text.split()) for text in re.findall(r"^- ((?:.+\n)(?:  .+\n)*)", prose, re.MULTILINE)}
    assert bullets == set(PROMISES)
    for promise, tests in PROMISES.items():
        assert tests, promise
        named = [test.split("::") for test in tests]
        assert [test for file, test in named if test not in functions(ROOT / file)] == [], promise


def test_the_table_shows_the_figures_of_the_soak():
    assert as_markdown(json.loads((ROOT / "docs" / "reliability.json").read_text())) in PAGE


def test_growth_is_distinguished_from_constant_size():
    steady = {"growth": 0.019, "files": [6, 6], "threads": [3, 3]}
    assert holds(steady)
    assert not holds({**steady, "growth": 0.02})
    assert not holds({**steady, "files": [6, 7]})
    assert not holds({**steady, "threads": [3, 4]})
