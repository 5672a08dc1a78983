"""docs/data.md: its commands parse, its records are rows, its story runs, its tables name everything."""

import re
import shlex
from pathlib import Path

import pytest

from tests.layouts import put
from trl_perception.cli.prepare import build_parser, main, read_options
from trl_perception.data.adapters import ADAPTERS, Source
from trl_perception.data.export_synthetic import main as export
from trl_perception.data.load import load_rows
from trl_perception.data.preparation import prepare
from trl_perception.data.templates import BY_TYPE, TEMPLATES
from trl_perception.rewards import get_reward

DOCS = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOCS, re.DOTALL)
COMMANDS = [shlex.split(line) for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]


def test_every_command_parses():
    prepares = [command[2:] for command in COMMANDS if command[:2] == ["trl-perception", "prepare"]]
    assert len(prepares) >= 5
    for arguments in prepares:
        given = build_parser().parse_args(arguments)
        assert given.name in ADAPTERS
        read_options(given)


def test_the_story_exports_and_prepares(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS[:4]:
        arguments = [{"128": "10", "64": "5"}.get(word, word) for word in command]
        export(arguments[3:]) if "export_synthetic" in command[2] else main(arguments[2:])
    assert len(load_rows("data/rows", "train")) == 10
    assert len(load_rows("data/rows", "test")) == 5
    assert set(load_rows("data/rows", "train")["id"]).isdisjoint(load_rows("data/rows", "test")["id"])


def test_the_records_become_rows(tmp_path, clips, pictures):
    records = [text for kind, text in BLOCKS if kind == "json"]
    put(tmp_path, [clips[0], *clips, clips[0]], [*pictures, pictures[0]])
    (tmp_path / "train.jsonl").write_text("".join(records))
    summary = prepare("jsonl", Source(tmp_path), tmp_path / "rows", progress=False)
    assert (summary["kept"], summary["dropped"]) == (5, {})


@pytest.mark.parametrize("names", [ADAPTERS, TEMPLATES])
def test_the_tables_name_everything(names):
    assert all(f"\n| `{name}` |" in DOCS for name in names)


def test_types_and_rewards_that_are_named_exist():
    assert all(f"`{problem_type}`" in DOCS for problem_type in BY_TYPE)
    table = re.findall(r"\n\| `(\w+)` \|.*\| `([^`]+)` \|", DOCS)
    assert {template for template, _ in table} == set(TEMPLATES) - {"none"}
    for template, reward in table:
        instruction = TEMPLATES[template].instruction
        tag = next((tag for tag in ("think", "reason") if f"<{tag}>" in instruction), None)
        thinking = f"<{tag}>why</{tag}>" if tag else ""
        answer = "\\boxed{B}" if "boxed" in instruction else "<answer>B</answer>"
        assert get_reward(reward)(["?"] * 2, [thinking + answer, f"so {answer}"]) == [1.0, 0.0], template
