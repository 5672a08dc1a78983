import pytest

from trl_perception.rewards import answer_format_reward, boxed_format_reward, format_reward

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


@pytest.mark.parametrize(("completion", "with_thinking", "answer_only"), TABLE)
def test_format_scores(completion, with_thinking, answer_only):
    messages = [{"role": "assistant", "content": completion}]
    assert format_reward(["?"] * 2, [completion, messages], [[1], [1]]) == [with_thinking] * 2
    assert answer_format_reward(["?"] * 2, [completion, messages], [[1], [1]]) == [answer_only] * 2
