"""Random strings through every reward."""

import math
import random

import pytest

from trl_perception.rewards import PROBLEM_TYPES, REWARDS, LengthWindow, repetition, soft_overlong

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


def random_strings(count):
    draw = random.Random(0)
    pieces = [piece for of_kind in PIECES.values() for piece in of_kind]
    strings = []
    for number in range(count):
        text = "".join(draw.choices(pieces, k=draw.randrange(13)))
        # Half in answer tags, an eighth in a box: without them hardly any would reach the rules.
        frames = ["<think>t</think><answer>{}</answer>"] * 4 + ["<think>t</think>\\boxed{{{}}}"] + ["{}"] * 3
        strings.append(frames[number % 8].format(text))
    return strings


@pytest.mark.timeout(120)
@pytest.mark.parametrize("count", [4_000, pytest.param(10_000, marks=pytest.mark.slow)])
def test_every_reward_scores_random_strings(count):
    assert set(SOLUTIONS) == set(PROBLEM_TYPES)
    completions = random_strings(count)
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
            "solution": [solution] * count,
            "problem_type": [problem_type] * count,
            "options": [["red", "blue", "green"] if problem_type == "multiple choice" else None] * count,
        }
        for name, (reward, (low, high)) in rewards.items():
            scores = reward(prompts=["?"] * count, completions=completions, completion_ids=ids, **columns)
            assert len(scores) == count
            applicable = [score for score in scores if score is not None]
            assert all(isinstance(s, float) and math.isfinite(s) and low <= s <= high for s in applicable), name
            right[name] += sum(score == high for score in applicable)
    assert all(right.values()), right  # the strings sometimes give the right answer


DRESS = [
    "**{}**",
    "*{}*",
    "__{}__",
    "`{}`",
    '"{}"',
    "“{}”",
    "「{}」",
    "${}$",
    "\\({}\\)",
    "\\boxed{{{}}}",
    "\\text{{{}}}",
    " {}\n",
    "{}。",
]
DRESS += [
    "Answer: {}",
    "The answer is {}.",
    "答案：{}",
    "So the final answer is: {}",
    "```\n{}\n```",
    "Réponse : {}",
    "{}\u200b",
    "### {}",
]
# problem type: solution, what is right in any dress, what is wrong in any
RIGHT_AND_WRONG = {
    "multiple choice": (
        "B",
        ["B", "(b)", "b) blue", "blue", "blue (B)"],
        ["A", "A or B", "B - red", "not B", "red, blue"],
    ),
    "numerical": ("3", ["3", "3.0", "3 m", "$3", "3%"], ["-3", "3 or 4", "3k", "33", "3-4"]),
    "regression": ("3", ["3", "3 m"], ["-3", "3 or 4"]),
    "OCR": ("KEEP LEFT", ["KEEP LEFT"], ["STOP HERE", "keep left"]),
    "free-form": ("-x", ["-x", "−X"], ["x", "- x y", "-x%"]),
    "free text": ("a red car", ["a red car"], ["two dogs"]),
    "mathematics": ("1/2", ["1/2", "½", "0.5", "50%"], ["2", "1/2 x", "-1/2", "1/2 or 1"]),
    "temporal grounding": (
        "2 to 3",
        ["2 to 3", "2s → 3s", "00:02 - 00:03", '{"start": 2, "end": 3}'],
        ["3 to 2", "2", "4-5"],
    ),
    "box grounding": (
        "[1, 2, 3, 4]",
        ["[1, 2, 3, 4]", "1 2 3 4", '{"bbox_2d": [1, 2, 3, 4]}'],
        ["[3, 2, 1, 4]", "1 2 3"],
    ),
}


def plain(text):
    return text.translate(str.maketrans("“”「」", '""""'))


def test_no_dress_changes_a_score():
    draw = random.Random(0)
    for problem_type, (solution, right, wrong) in RIGHT_AND_WRONG.items():
        completions, expected = [], []
        for _ in range(300):
            score = draw.randrange(2)
            text = draw.choice(right if score else wrong)
            for dress in draw.sample(DRESS, k=draw.randrange(4)):
                # Not the same mark twice: '"x" "y"' would be the outcome of some orders.
                again = set(plain(dress)) & set(plain(text)) & set('*_`$#"')
                text = text if again or ("$" in dress and "\\" in text) else dress.format(text)
            completions.append(f"<answer>{text}</answer>")
            expected.append(float(score))
        columns = {"solution": [solution] * 300, "problem_type": [problem_type] * 300}
        columns["options"] = [["red", "blue", "green"] if problem_type == "multiple choice" else None] * 300
        scores = REWARDS["accuracy"]([None] * 300, completions, **columns)
        found = [entry for entry in zip(completions, scores, expected, strict=True) if abs(entry[1] - entry[2]) > 1e-9]
        assert not found, (problem_type, found[:5])
