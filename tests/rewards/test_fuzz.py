"""Ten thousand random strings through every reward."""

import math
import random

import pytest

from trl_perception.rewards import PROBLEM_TYPES, REWARDS, LengthWindow, repetition, soft_overlong

STRINGS = 10_000

PIECES = {
    "tags": ["<think>", "</think>", "<answer>", "</answer>", "<", ">", "</", "<|im_end|>", "<box>", "\\boxed{"],
    "digits": [*"0123456789", "1e9", "-3", "3.5", "1,234", "00:12", "2 to 3", "9999999999", "[1, 2, 3, 4]", "50%"],
    "unicode": [
        "\uff13",
        "\u0663",
        "\u00b2",
        "\u0412",
        "\u200b",
        "\u2212",
        "\ud800",
        "\U0001f600",
        "\u00e9",
        "e\u0301",
    ],
    "brackets": ["(", ")", "[", "]", "{", "}", "((", "))", "{{", "}}"],
    "options": ["A", "B", "A. red", "B. blue", "(C)", "A or B", "red", "blue", "green", "none of them"],
    "latex": ["\\frac{1}{2}", "\\sqrt", "^", "_", "\\pi", "$", "\\text{", "x", "=", "\\infty", "!", "+", "\\\\"],
    "space": [" ", "\n", "\t", ", ", ". ", "-", " and "],
}
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


def random_strings():
    draw = random.Random(0)
    pieces = [piece for of_kind in PIECES.values() for piece in of_kind]
    strings = []
    for number in range(STRINGS):
        text = "".join(draw.choices(pieces, k=draw.randrange(13)))
        # Half in answer tags, an eighth in a box: without them hardly any would get to the rules.
        frames = ["<think>t</think><answer>{}</answer>"] * 4 + ["<think>t</think>\\boxed{{{}}}"] + ["{}"] * 3
        strings.append(frames[number % 8].format(text))
    return strings


@pytest.mark.timeout(60)
def test_every_reward_scores_ten_thousand_random_strings():
    assert set(SOLUTIONS) == set(PROBLEM_TYPES)
    completions = random_strings()
    ids = [list(text.encode("utf-8", "replace")) for text in completions]
    made = {
        "length_window": (LengthWindow(low=0, high=40), (0.0, 0.2)),
        "soft_overlong": (soft_overlong(max_completion_length=40, cache=20), (-1.0, 0.0)),
        "repetition": (repetition(), (-1.0, 0.0)),
    }
    rewards = {name: (reward, (0.0, 1.0)) for name, reward in REWARDS.items()} | made
    right = dict.fromkeys(rewards, 0)
    for problem_type, solution in SOLUTIONS.items():
        columns = {
            "solution": [solution] * STRINGS,
            "problem_type": [problem_type] * STRINGS,
            "options": [["red", "blue", "green"] if problem_type == "multiple choice" else None] * STRINGS,
        }
        for name, (reward, (low, high)) in rewards.items():
            scores = reward(prompts=["?"] * STRINGS, completions=completions, completion_ids=ids, **columns)
            assert len(scores) == STRINGS
            applicable = [score for score in scores if score is not None]
            assert all(isinstance(s, float) and math.isfinite(s) and low <= s <= high for s in applicable), name
            right[name] += sum(score == high for score in applicable)
    assert all(right.values()), right  # the strings are not so random that they never hit
