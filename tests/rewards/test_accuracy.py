import math
import subprocess
import sys
import time
from datetime import datetime
from decimal import Decimal

import numpy as np
import pytest
import torch

from trl_perception.rewards import (
    PROBLEM_TYPES,
    accuracy_reward,
    boxed_accuracy_reward,
    check_solution,
    get_reward,
    mathematics,
)
from trl_perception.rewards.math_process import MathProcess

# problem_type, solution, answer, score
TABLE = [
    ("multiple choice", "B", "B", 1.0),
    ("multiple choice", "<answer>B</answer>", "(b)", 1.0),
    ("multiple choice", "B. blue", "B", 1.0),
    ("multiple choice", "B", "blue", 1.0),
    ("multiple choice", "blue", "B", 1.0),
    ("multiple choice", "B", "A", 0.0),
    ("multiple choice", "B", "A, B", 0.0),
    ("multiple choice", "B", "unsure", 0.0),
    ("numerical", "3", "3", 1.0),
    ("numerical", "3", " 3.00 ", 1.0),
    ("numerical", 3, "+3.", 1.0),
    ("numerical", 0.5, ".5", 1.0),
    # 3.138 and 3.14 both round to 3.14; 3.146 rounds to 3.15
    ("numerical", "3.14", "3.138", 1.0),
    ("numerical", "3.14", "3.146", 0.0),
    # a solution of three decimals is compared to three; one of a float's sixteen to six digits
    ("numerical", "3.141", "3.138", 0.0),
    ("numerical", "3.141", "3.1411", 1.0),
    ("numerical", "0.001", "-0.001", 0.0),
    ("numerical", 1 / 3, "0.333333", 1.0),
    ("numerical", 1 / 3, "0.3333", 0.0),
    ("numerical", 2e-7, "0", 0.0),
    ("numerical", "0", "0.004", 1.0),
    ("numerical", "3", "-3", 0.0),
    ("numerical", "1,234.5", "1234.50", 1.0),
    ("numerical", "1000000", "1e6", 1.0),
    ("numerical", "12", "1,2", 0.0),
    ("numerical", "3", "3 s", 1.0),
    ("numerical", "3", "x = 3", 0.0),
    ("numerical", "3", "3 4", 0.0),
    ("numerical", "3", "\u0663", 0.0),
    ("numerical", "3", "\uff13", 1.0),
    ("numerical", "3", "\u00b3", 0.0),
    ("numerical", "3", "1_0", 0.0),
    ("numerical", "3", "nan", 0.0),
    ("numerical", "3", "inf", 0.0),
    ("numerical", "3", "1e999999999", 0.0),
    ("numerical", "3", "9" * 5000, 0.0),
    ("free-form", "A red car", "a  RED\ncar.", 1.0),
    ("free-form", "it's 'red'", "It’s red", 1.0),
    ("free-form", "caf\u00e9", "cafe\u0301", 1.0),
    ("free-form", "A red car", "red car", 0.0),
    ("free-form", "red car", "redcar", 0.0),
    ("free-form", "3.5", "35", 0.0),
    ("free-form", "-5", "5", 0.0),
    ("free-form", "C++", "C", 0.0),
    ("free-form", "red", "...", 0.0),
    # 1 - |9 - 10| / 10, 1 - |15 - 10| / 10, 1 - |-3 + 4| / 4; off by the solution itself and more is 0
    ("regression", "10", "9", 0.9),
    ("regression", "10", "15.0", 0.5),
    ("regression", "-4", "-3", 0.75),
    ("regression", "10", "20", 0.0),
    ("regression", "10", "-10", 0.0),
    ("regression", "10", "1e300", 0.0),
    ("regression", "0", "0.0", 1.0),
    ("regression", "0", "0.001", 0.0),
    # no rounding: 1 - 0.001 / 0.004
    ("regression", "0.004", "0.003", 0.75),
    ("regression", "10", "about 10", 0.0),
    # 4 words wanted: none wrong; one substituted; one deleted; one inserted; one deleted and one substituted
    ("OCR", "KEEP LEFT AT FORK", "KEEP  LEFT\nAT FORK", 1.0),
    ("OCR", "KEEP LEFT AT FORK", "KEEP LEFT AT FORT", 0.75),
    ("OCR", "KEEP LEFT AT FORK", "KEEP LEFT FORK", 0.75),
    ("OCR", "KEEP LEFT AT FORK", "KEEP LEFT AT THE FORK", 0.75),
    ("OCR", "KEEP LEFT AT FORK", "LEFT AT FORT", 0.5),
    ("OCR", "KEEP LEFT AT FORK", "keep left at fork", 0.0),
    # 3 insertions on 4 words; 4 insertions
    ("OCR", "a b c d", "a b c d e f g", 0.25),
    ("OCR", "a b c d", "a b c d e f g h", 0.0),
    ("OCR", "caf\u00e9", "cafe\u0301", 1.0),
    # ROUGE-1: 3 shared of 3 and 4, F1 6/7; ROUGE-2: 2 of 2 and 3, F1 4/5; ROUGE-L: 3 of 3 and 4, 6/7
    ("free text", "the cat sat down", "The cat sat.", (6 / 7 + 4 / 5 + 6 / 7) / 3),
    # all words in another order: ROUGE-1 1, ROUGE-2 none of 3, ROUGE-L "sat down" 2 of 4
    ("free text", "the cat sat down", "sat down the cat", (1 + 2 / 3 + 1 / 2) / 3),
    ("free text", "the cat sat down", "a dog", 0.0),
    ("free text", "it jumps", "it jumped", 1.0),
    # one word wanted: ROUGE-1 and ROUGE-L of 1 shared, 3 found, 1 wanted: F1 2/4
    ("free text", "red", "red", 1.0),
    ("free text", "red", "it is red", 0.5),
    ("free text", "\u043a\u043e\u0442", "\u041a\u043e\u0442!", 1.0),
    ("free text", "red", "red " * 2001, 0.0),
    ("mathematics", "\\frac{1}{2}", "0.5", 1.0),
    ("mathematics", "\\boxed{\\frac{1}{2}}", "$1/2$", 1.0),
    ("mathematics", "x^2 - 1", "(x-1)(x+1)", 1.0),
    ("mathematics", "3", "4", 0.0),
    # shared 1 x 2 = 2, areas 4 and 4, union 6
    ("box grounding", "[0, 0, 2, 2]", "[1, 0, 3, 2]", 2 / 6),
    ("spatial grounding", [0, 0, 2, 2], "(0, 0), (2, 2)", 1.0),
    ("box grounding", "[0, 0, 2, 2]", "left", 0.0),
    # shared 2..3 = 1, union 1..3 = 2
    ("temporal grounding", "<answer>2 to 3</answer>", "1-3 s", 0.5),
    ("temporal grounding", [[2.0, 3.0], [5.0, 6.0]], "2 to 3", 0.5),
    ("temporal grounding", "00:12 to 00:15", "[12.0, 15.0]", 1.0),
    ("temporal grounding", "2 to 3", "later", 0.0),
]


SOLUTIONS = {
    "multiple choice": "B",
    "numerical": "2.5",
    "regression": "2.5",
    "OCR": "KEEP LEFT",
    "free-form": "red",
    "free text": "a red car",
    "mathematics": "\\sqrt{2}",
    "temporal grounding": "1 to 2",
    "box grounding": "[1, 2, 3, 4]",
    "spatial grounding": "[1, 2, 3, 4]",
}


def score(completion, solution, problem_type, options=("red", "blue", "green")):
    rewards = accuracy_reward(
        ["?"], [completion], [[1]], solution=[solution], problem_type=[problem_type], options=[options]
    )
    assert len(rewards) == 1
    assert isinstance(rewards[0], float)
    return rewards[0]


@pytest.mark.parametrize(("problem_type", "solution", "answer", "expected"), TABLE)
def test_accuracy_by_problem_type(problem_type, solution, answer, expected):
    completion = f"<think>why</think><answer>{answer}</answer>"
    assert score(completion, solution, problem_type) == pytest.approx(expected, abs=1e-12)
    assert score([{"role": "assistant", "content": completion}], solution, problem_type) == pytest.approx(expected)


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
def test_the_solution_itself_scores_one_and_needs_its_tags(problem_type):
    text = SOLUTIONS[problem_type]
    assert score(f"<answer>{text}</answer>", text, problem_type) == 1.0
    for completion in [text, "", "<answer></answer>", f"<answer>{text}", f"<answer>{text}</answer>" * 2]:
        assert score(completion, text, problem_type) == 0.0


def test_accuracy_called_as_trl_calls_it():
    rewards = accuracy_reward(
        prompts=[[{"role": "user", "content": "?"}]] * 4,
        completions=[
            [{"role": "assistant", "content": "<think>t</think><answer>B</answer>"}],
            [{"role": "assistant", "content": "<answer>blue</answer>"}],
            [{"role": "assistant", "content": "<answer>12.0</answer>"}],
            [{"role": "assistant", "content": "<answer>0 to 4</answer>"}],
        ],
        completion_ids=[[1, 2], [3], [4], [5, 6, 7]],
        solution=["B", "<answer>A</answer>", "12", "<answer>1 to 4</answer>"],
        problem_type=["multiple choice", "multiple choice", "numerical", "temporal grounding"],
        options=[["A. red", "B. blue"], ["A. red", "B. blue"], None, []],
        data_source=["x", "x", "y", "z"],
        trainer_state=object(),
        log_extra=print,
        log_metric=print,
    )
    # right; blue is B, not A; 12.0 = 12; shared 3, union 4
    assert rewards == [1.0, 0.0, 1.0, 0.75]


def test_accuracy_without_an_options_column_reads_letters():
    columns = {"solution": ["B"] * 2, "problem_type": ["multiple choice"] * 2}
    assert accuracy_reward(["?"] * 2, ["<answer>B. red</answer>", "<answer>red</answer>"], **columns) == [1.0, 0.0]


@pytest.mark.parametrize("missing", ["solution", "problem_type"])
def test_accuracy_names_the_missing_column(missing):
    columns = {"solution": ["B"], "problem_type": ["multiple choice"]}
    del columns[missing]
    with pytest.raises(ValueError, match=f"column '{missing}'"):
        accuracy_reward(["?"], ["<answer>B</answer>"], [[1]], **columns)


@pytest.mark.parametrize("short", ["solution", "problem_type", "options"])
def test_accuracy_counts_the_rows_of_a_column(short):
    columns = {"solution": ["B"] * 2, "problem_type": ["multiple choice"] * 2, "options": [None] * 2}
    columns[short] = columns[short][:1]
    with pytest.raises(ValueError, match=f"column '{short}' has 1 values for 2 completions"):
        accuracy_reward(["?"] * 2, ["x", "y"], [[1], [2]], **columns)


@pytest.mark.parametrize("problem_type", ["Multiple Choice", "ocr", "", None])
def test_accuracy_names_an_unknown_problem_type_and_the_known_ones(problem_type):
    with pytest.raises(ValueError, match="unknown problem_type") as error:
        score("<answer>B</answer>", "B", problem_type)
    assert repr(problem_type) in str(error.value)
    assert all(known in str(error.value) for known in PROBLEM_TYPES)


@pytest.mark.parametrize(
    ("problem_type", "solution"),
    [
        ("multiple choice", "A, B"),
        ("multiple choice", None),
        ("multiple choice", "<answer></answer>"),
        ("numerical", "3 apples"),
        ("numerical", float("nan")),
        ("free-form", "?"),
        ("regression", "about 3"),
        ("OCR", " "),
        ("free text", "?!"),
        ("mathematics", "1 2"),
        ("mathematics", "\\frac{1"),
        ("box grounding", "[2, 0, 1, 3]"),
        ("temporal grounding", "5 to 2"),
    ],
)
def test_accuracy_refuses_a_solution_that_nothing_can_match(problem_type, solution):
    with pytest.raises(ValueError, match=f"row 0 .* does not suit problem_type '{problem_type}'"):
        score("garbage", solution, problem_type)


# solution, answer, score: the same for every problem type of texts
TYPED = [
    (3, "3", 1.0),
    (3.0, "3", 1.0),
    (2.5, "2.5", 1.0),
    (1e-05, "0.00001", 1.0),
    (Decimal("3.0"), "3", 1.0),
    (np.int64(3), "3", 1.0),
    (np.float32(0.1), "0.1", 1.0),
    (np.array(3.0), "3", 1.0),
    (torch.tensor(3), "3", 1.0),
    (torch.tensor(0.1), "0.1", 1.0),
    (torch.tensor(0.5, dtype=torch.bfloat16), "0.5", 1.0),
    (torch.tensor(0.1, dtype=torch.bfloat16), "0.1", 1.0),  # 0.10009765625, the nearest that the type holds
    ([3, 4.0], "4", 1.0),
    ((3, "4"), "4", 1.0),
    (np.array([3, 4]), "3", 1.0),
    (torch.tensor([3, 4]), "4", 1.0),
    ([3, 4], "5", 0.0),
]
NOTHING = [
    None,
    math.nan,
    np.nan,
    np.float32("nan"),
    Decimal("NaN"),
    torch.tensor(math.nan),
    math.inf,
    [],
    [None],
    [math.nan],
]


@pytest.mark.parametrize(
    "problem_type", ["numerical", "free-form", "OCR", "mathematics", "free text", "multiple choice"]
)
@pytest.mark.parametrize(("solution", "answer", "expected"), TYPED)
def test_a_solution_is_its_value_and_a_list_any_of_its_values(problem_type, solution, answer, expected):
    options = [3, 4.0, 5, 2.5, 0.00001, 0.1, 0.5] if problem_type == "multiple choice" else None
    if (problem_type == "free text" and expected == 0.0) or (problem_type == "free text" and "." in answer):
        return  # words of numbers are shared
    assert score(f"<answer>{answer}</answer>", solution, problem_type, options) == expected
    check_solution(problem_type, solution, options)


@pytest.mark.parametrize("problem_type", PROBLEM_TYPES)
@pytest.mark.parametrize("solution", [*NOTHING, {"a": None}, b"3", datetime(2024, 1, 5)], ids=repr)
def test_a_solution_without_a_value_is_refused_for_every_type(problem_type, solution):
    with pytest.raises(ValueError, match=f"does not suit problem_type '{problem_type}'"):
        check_solution(problem_type, solution, ["nan", "None", "red"])


@pytest.mark.parametrize(
    "solution",
    [[2.0, 5.0], ["2.0", "5.0"], (2, 5), [[2, 5]], np.array([2.0, 5.0]), torch.tensor([[2.0, 5.0]]), ["2 to 5"]],
    ids=repr,
)
def test_a_list_is_one_interval(solution):
    assert score("<answer>2 to 5</answer>", solution, "temporal grounding") == 1.0


@pytest.mark.parametrize(
    "solution",
    [[1, 2, 3, 4], ["1", "2", "3", "4"], [[1, 2], [3, 4]], np.array([1.0, 2.0, 3.0, 4.0]), [[1, 2, 3, 4]]],
    ids=repr,
)
def test_a_list_is_one_box(solution):
    assert score("<answer>[1, 2, 3, 4]</answer>", solution, "box grounding") == 1.0


@pytest.mark.parametrize(
    ("solution", "options"),
    [
        ("D", ["red", "blue"]),
        ("purple", ["red", "blue"]),
        ("B. red", ["red", "blue"]),
        (["A", "C"], ["red", "blue"]),
        (3, [1, 2]),
    ],
)
def test_a_solution_that_is_none_of_its_options_is_refused(solution, options):
    with pytest.raises(ValueError, match=r"row 0 of the batch: solution .* Correct or drop the row"):
        score("<answer>A</answer>", solution, "multiple choice", options)


def test_thousands_of_choices_a_second():
    completions = ["<answer>B</answer>", "<answer>The answer is (b) blue.</answer>"] * 2000
    row = {"solution": ["B"] * 4000, "problem_type": ["multiple choice"] * 4000, "options": [["red", "blue"]] * 4000}
    started = time.process_time()
    assert accuracy_reward([None] * 4000, completions, **row) == [1.0] * 4000
    assert time.process_time() - started < 4


def test_accuracy_refuses_options_in_one_string():
    with pytest.raises(ValueError, match="options must be a list"):
        score("<answer>B</answer>", "B", "multiple choice", options="A. red B. blue")


def test_boxed_accuracy_reads_the_box_after_the_thinking_by_the_same_rules():
    rewards = boxed_accuracy_reward(
        prompts=["?"] * 4,
        completions=[
            "<think>\\boxed{A}?</think> It is \\boxed{\\text{B}}.",
            [{"role": "assistant", "content": "<think>t</think>\\boxed{\\frac{2}{4}}"}],
            "<think>t</think><answer>B</answer>",
            "\\boxed{9}",
        ],
        completion_ids=[[1]] * 4,
        solution=["B", "0.5", "B", 10],
        problem_type=["multiple choice", "mathematics", "multiple choice", "regression"],
    )
    # the letter; 2/4 = 0.5; no box; 1 - 1 / 10
    assert rewards == [1.0, 1.0, 0.0, 0.9]
    with pytest.raises(ValueError, match="boxed_accuracy_reward needs the dataset column 'solution'"):
        boxed_accuracy_reward(["?"], ["x"], [[1]])


@pytest.mark.parametrize(
    ("problem_type", "module", "package"),
    [
        ("OCR", "jiwer", "jiwer"),
        ("free text", "rouge_score", "rouge-score"),
        ("mathematics", "math_verify", "math-verify"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(problem_type, module, package, monkeypatch):
    monkeypatch.setattr(sys, "meta_path", [_Without(module, finder) for finder in sys.meta_path])
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(mathematics, "math_process", MathProcess())
    mathematics._readable.cache_clear()
    for other in set(PROBLEM_TYPES) - {problem_type, "mathematics"}:
        assert score(f"<answer>{SOLUTIONS[other]}</answer>", SOLUTIONS[other], other) == 1.0
    with pytest.raises(ImportError, match=f"problem_type '{problem_type}' .*pip install {package}"):
        score(f"<answer>{SOLUTIONS[problem_type]}</answer>", SOLUTIONS[problem_type], problem_type)


class _Without:
    """A finder of modules for which one package is not installed."""

    def __init__(self, module, finder):
        self.module, self.finder = module, finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] == self.module else self.finder.find_spec(name, path, target)


def test_scoring_imports_no_package_that_the_problem_type_does_not_need():
    code = """
import sys
from trl_perception.rewards import accuracy_reward
accuracy_reward(["?"], ["<answer>B</answer>"], solution=["B"], problem_type=["multiple choice"])
print([name for name in ("jiwer", "rouge_score", "nltk", "math_verify", "sympy", "torch", "trl") if name in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


def test_exact_reading_wants_the_answer_alone_whatever_dress_the_solution_has():
    exact = get_reward("accuracy(answer_reading='exact')")
    rows = [
        ("multiple choice", "**B**", "B", 1.0),
        ("multiple choice", "B", "**B**", 0.0),
        ("numerical", "3 m", "3", 1.0),
        ("numerical", "3", "3 m", 0.0),
        ("OCR", '"STOP."', '"STOP."', 1.0),
        ("temporal grounding", [2, 3], "2 to 3", 1.0),
        ("temporal grounding", "2 to 3", "2 → 3", 0.0),
    ]
    for problem_type, solution, answer, expected in rows:
        columns = {"solution": [solution], "problem_type": [problem_type]}
        assert exact([None], [f"<answer>{answer}</answer>"], **columns) == [expected], (problem_type, answer)
