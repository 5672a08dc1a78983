"""The code of docs/rewards.md runs, and its tables are complete."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from tests.helpers import message
from trl_perception.rewards import PROBLEM_TYPES, REWARD_FACTORIES, REWARDS, get_reward
from trl_perception.rewards.registry import PARAMETERS

PAGE = (Path(__file__).parents[2] / "docs" / "rewards.md").read_text()


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def shown():
    """What the page's Python defines, run from top to bottom."""
    names = {}
    for block in blocks("python"):
        exec(block, names)
    return names


def test_the_recipe_of_the_page_resolves():
    (recipe,) = map(yaml.safe_load, blocks("yaml"))
    assert len(recipe["reward_weights"]) == len([get_reward(name) for name in recipe["reward_funcs"]])


def test_the_tables_list_every_reward_and_every_problem_type():
    named = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert named == [*REWARDS, *REWARD_FACTORIES, "problem_type"]
    types = PAGE.partition("| `problem_type` |")[2].partition("\n\n")[0].splitlines()[2:]
    assert [name for line in types for name in line.split("|")[1].strip().split(", ")] == list(PROBLEM_TYPES)
    for name, factory in REWARD_FACTORIES.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))
        for parameter in inspect.signature(factory).parameters.values():
            default = "" if parameter.default is parameter.empty else f"={parameter.default}"
            assert f"{parameter.name}{default}" in row
    for name, reward in REWARDS.items():
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}`"))
        taken = {key: value.default for key, value in inspect.signature(reward).parameters.items() if key in PARAMETERS}
        listed = "`" + ", ".join(f"{key}={default}" for key, default in taken.items()) + "`" if taken else ""
        assert row.rsplit("|", 2)[1].strip() == listed


def test_short_answer(shown):
    completions = ["<answer>a red car</answer>", "<answer>a big red car</answer>", "red"]
    assert shown["short_answer"](completions=completions, solution=["the red car"] * 3) == [1.0, 0.0, 0.0]


def test_at_most(shown):
    reward = shown["at_most"](words=2)
    assert reward(completions=["<answer>red car</answer>", "<answer>a red car</answer>", ""]) == [1.0, 0.0, 0.0]


def test_says_how_long(shown, clips):
    prompts = [message("How long?", "video"), message("How long?", "video"), message("?")]
    completions = ["<answer>4</answer>", "<answer>5</answer>", "<answer>4</answer>"]
    scores = shown["says_how_long"](prompts, completions, videos=[[clips[0]], [clips[1]], []])
    assert scores == [1.0, 0.0, None]  # 16 frames at 4 a second
