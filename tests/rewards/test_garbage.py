"""Any text of a model gets a finite score in [0, 1], in bounded time."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trl_perception.rewards import REWARDS

SOLUTIONS = {
    "multiple choice": "B",
    "numerical": "3",
    "regression": "3",
    "OCR": "KEEP LEFT",
    "free-form": "red",
    "free text": "a red car turns left",
    "mathematics": "\\frac{1}{2}",
    "temporal grounding": "2 to 3",
    "box grounding": "[1, 2, 3, 4]",
    "spatial grounding": "[1, 2, 3, 4]",
}
ROWS = {
    "problem_type": list(SOLUTIONS),
    "solution": list(SOLUTIONS.values()),
    "options": [["red", "blue"], *[None] * (len(SOLUTIONS) - 1)],
}
N = len(SOLUTIONS)

TAGS = ["<think>", "</think>", "<answer>", "</answer>", "<answer>B</answer>", "<", ">", "\n", " ", "\0", "\ud800"]
WORDS = ["A", "b", "(B)", "B.", " and ", "red", " to ", "nan", "inf", "Infinity", "s", " seconds", "%", "[", "]"]
# the digits stand for Arabic-Indic 3, full-width 3, superscript 2, a half; the marks for a minus and a decimal sign
NUMBERS = ["1", "23", "00:12", "1e999", "e9", "0x1F", "1_000", "\u0663", "\uff13", "\u00b2", "\u00bd"]
MARKS = [".", ",", ":", "-", "\u2013", "\u2212", "\u066b", "+"]
texts = st.one_of(st.text(), st.lists(st.sampled_from(TAGS + WORDS + NUMBERS + MARKS), max_size=20).map("".join))


def scores_of(text):
    rewards = [
        reward(prompts=["?"] * N, completions=[text] * N, completion_ids=[[1]] * N, **ROWS)
        for reward in REWARDS.values()
    ]
    return [score for values in rewards for score in values if score is not None]


@settings(max_examples=500, deadline=None, database=None)
@given(text=texts, tagged=st.booleans())
def test_any_text_scores_between_zero_and_one(text, tagged):
    scores = scores_of(f"<think>t</think><answer>{text}</answer>" if tagged else text)
    # five rewards of every row, temporal IoU of one row, box IoU of two
    assert len(scores) == 5 * N + 1 + 2
    assert all(isinstance(score, float) and math.isfinite(score) and 0.0 <= score <= 1.0 for score in scores)


UNITS = [
    "1",
    "1 s",
    "1:",
    "1,",
    "1 to 2, ",
    "[ ",
    "A",
    "A. ",
    "B)",
    " ",
    "<answer>",
    "-",
    "(",
    "**",
    "\\text{",
    "<box>",
]


@pytest.mark.parametrize(
    "unit", [unit if unit == "A. " else pytest.param(unit, marks=pytest.mark.slow) for unit in UNITS]
)
def test_a_million_characters_take_linear_time(unit):
    text = unit * (10**6 // len(unit))
    started = time.process_time()
    scores_of(f"<think>t</think><answer>B{text}</answer>")
    # linear work takes a second; a quadratic scan of 10^6 characters takes minutes
    assert time.process_time() - started < 10
