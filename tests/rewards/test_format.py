import pytest

from trl_perception.rewards import (
    LengthWindow,
    answer_format_reward,
    boxed_accuracy_reward,
    boxed_format_reward,
    extract_boxed,
    format_reward,
)

# completion, score of format, score of answer_format
TABLE = [
    ("<think>why</think><answer>B</answer>", 1.0, 0.0),
    (" \n<think>two\nlines</think>\n\n<answer>B\nC</answer>\n", 1.0, 0.0),
    ("<think></think><answer></answer>", 1.0, 0.0),
    ("<think>1 < 2 <b></think><answer>B</answer>", 1.0, 0.0),
    ("<answer>B</answer>", 0.0, 1.0),
    ("\n <answer>two\nlines</answer> ", 0.0, 1.0),
    ("<answer></answer>", 0.0, 1.0),
    ("so <answer>B</answer>", 0.0, 0.0),
    ("<answer>B</answer>.", 0.0, 0.0),
    ("<answer>A</answer><answer>B</answer>", 0.0, 0.0),
    ("<answer><think>why</think>B</answer>", 0.0, 0.0),
    ("<answer>B</think></answer>", 0.0, 0.0),
    ("<think>why</think> so <answer>B</answer>", 0.0, 0.0),
    ("so <think>why</think><answer>B</answer>", 0.0, 0.0),
    ("<think>why</think><answer>B</answer> so", 0.0, 0.0),
    ("<answer>B</answer><think>why</think>", 0.0, 0.0),
    ("<think>why<answer>B</answer></think>", 0.0, 0.0),
    ("<think>why</think><answer>B", 0.0, 0.0),
    ("<think>why<answer>B</answer>", 0.0, 0.0),
    ("<think>why</think>", 0.0, 0.0),
    ("<think>a</think><think>b</think><answer>B</answer>", 0.0, 0.0),
    ("<think>a<think>b</think><answer>B</answer>", 0.0, 0.0),
    ("<think>a</think><answer>A</answer><answer>B</answer>", 0.0, 0.0),
    ("<think>see <answer></think><answer>B</answer>", 0.0, 0.0),
    ("<THINK>why</THINK><ANSWER>B</ANSWER>", 0.0, 0.0),
    ("", 0.0, 0.0),
]

# completion, score of boxed_format
BOXED_TABLE = [
    ("<think>why</think>\\boxed{B}", 1.0),
    ("\n<think>\\boxed{A}?</think>\nThe answer is \\boxed{\\frac{1}{2}}.\n", 1.0),
    ("\\boxed{B}", 0.0),
    ("<think>why</think>B", 0.0),
    ("<think>\\boxed{B}</think>", 0.0),
    ("<think>why</think>\\boxed{}", 0.0),
    ("<think>why</think>\\boxed{B", 0.0),
    ("<think>why</think>\\boxed{A} \\boxed{B}", 0.0),
    ("so <think>why</think>\\boxed{B}", 0.0),
    ("<think>a</think><think>b</think>\\boxed{B}", 0.0),
    ("</think>why<think>\\boxed{B}", 0.0),
    ("<think>why</think><answer>\\boxed{B}</answer>", 0.0),
    ("", 0.0),
]


@pytest.mark.parametrize(("completion", "score"), BOXED_TABLE)
def test_boxed_format_scores(completion, score):
    messages = [{"role": "assistant", "content": completion}]
    assert boxed_format_reward(["?"] * 2, [completion, messages], [[1], [1]]) == [score] * 2


@pytest.mark.parametrize(("completion", "score"), BOXED_TABLE)
def test_boxed_format_and_answer_with_tags_of_another_name(completion, score):
    """`thinking_tag` renames the tags and nothing else; the tags of the default count as text."""
    renamed = completion.replace("think>", "reason>")
    assert boxed_format_reward(["?"], [renamed], thinking_tag="reason") == [score]
    assert boxed_format_reward(["?"], [renamed]) == [0.0]
    assert extract_boxed(renamed, "reason") == extract_boxed(completion)


@pytest.mark.parametrize(("completion", "score"), [row[:2] for row in TABLE])
def test_format_with_tags_of_another_name(completion, score):
    assert format_reward(["?"], [completion.replace("think>", "reason>")], thinking_tag="reason") == [score]
    assert format_reward(["?"], [completion], thinking_tag="reason") == [0.0]


def test_a_box_in_renamed_thinking_is_ignored_by_every_reward_that_reads_boxes():
    columns = {"completion_ids": [[1, 2]], "problem_type": ["multiple choice"], "solution": ["B"]}
    given = (["?"], ["<reason>\\boxed{A}?</reason>\\boxed{B}"])
    assert boxed_accuracy_reward(*given, **columns) == [0.0]  # two boxes
    assert boxed_accuracy_reward(*given, thinking_tag="reason", **columns) == [1.0]
    window = LengthWindow(low=1, high=2, boxed=True, thinking_tag="reason")
    assert window(*given, **columns) == [0.2]


@pytest.mark.parametrize(("completion", "with_thinking", "answer_only"), TABLE)
def test_format_scores(completion, with_thinking, answer_only):
    messages = [{"role": "assistant", "content": completion}]
    assert format_reward(["?"] * 2, [completion, messages], [[1], [1]]) == [with_thinking] * 2
    assert answer_format_reward(["?"] * 2, [completion, messages], [[1], [1]]) == [answer_only] * 2
