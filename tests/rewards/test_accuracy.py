import pytest

from trl_perception.rewards import PROBLEM_TYPES, accuracy_reward

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
    # 3.141 and 3.138 both round to 3.14; 3.146 rounds to 3.15
    ("numerical", "3.141", "3.138", 1.0),
    ("numerical", "3.141", "3.146", 0.0),
    ("numerical", "0.001", "-0.001", 1.0),
    ("numerical", "3", "-3", 0.0),
    ("numerical", "1,234.5", "1234.50", 1.0),
    ("numerical", "1000000", "1e6", 1.0),
    ("numerical", "12", "1,2", 0.0),
    ("numerical", "3", "3 s", 0.0),
    ("numerical", "3", "x = 3", 0.0),
    ("numerical", "3", "3 4", 0.0),
    ("numerical", "3", "\u0663", 0.0),
    ("numerical", "3", "\uff13", 0.0),
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
    # shared 2..3 = 1, union 1..3 = 2
    ("temporal grounding", "<answer>2 to 3</answer>", "1-3 s", 0.5),
    ("temporal grounding", [[2.0, 3.0], [5.0, 6.0]], "2 to 3", 0.5),
    ("temporal grounding", "00:12 to 00:15", "[12.0, 15.0]", 1.0),
    ("temporal grounding", "2 to 3", "later", 0.0),
]


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
    solution = {"multiple choice": "B", "numerical": "2.5", "free-form": "red", "temporal grounding": "1 to 2"}
    text = solution[problem_type]
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


@pytest.mark.parametrize("problem_type", ["Multiple Choice", "OCR", "", None])
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
        ("numerical", "3 cm"),
        ("numerical", float("nan")),
        ("free-form", "?"),
        ("temporal grounding", "5 to 2"),
    ],
)
def test_accuracy_refuses_a_solution_that_nothing_can_match(problem_type, solution):
    with pytest.raises(ValueError, match=f"row 0 .* does not suit problem_type '{problem_type}'"):
        score("garbage", solution, problem_type)


def test_accuracy_refuses_options_in_one_string():
    with pytest.raises(ValueError, match="options must be a list"):
        score("<answer>B</answer>", "B", "multiple choice", options="A. red B. blue")
