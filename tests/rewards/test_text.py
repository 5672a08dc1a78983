import pytest

from trl_perception.rewards import completion_text, extract_answer, extract_boxed

TEXTS = [
    ("plain", "plain"),
    ("", ""),
    ([{"role": "assistant", "content": "one"}], "one"),
    ([{"content": "no role"}], "no role"),
    ([{"role": "assistant", "content": None}], ""),
    ([{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}], "a"),
    ([{"role": "assistant", "content": "a"}, {"role": "tool", "content": "X"}, {"content": "b"}], "ab"),
    ([], ""),
]

ANSWERS = [
    ("<answer>B</answer>", "B"),
    ("<think>t</think>\n<answer>\n two words \n</answer> tail", "two words"),
    ("<answer>a < b</answer>", "a < b"),
    ("B", None),
    ("", None),
    ("<answer></answer>", None),
    ("<answer> \n </answer>", None),
    ("<answer>B", None),
    ("B</answer>", None),
    ("</answer>B<answer>", None),
    ("<answer>A</answer><answer>B</answer>", None),
    ("<answer><answer>B</answer></answer>", None),
    ("<answer>A<answer>B</answer>", None),
    ("<answer>B</answer></answer>", None),
    ("<Answer>B</Answer>", None),
]

BOXES = [
    ("\\boxed{B}", "B"),
    ("so \\boxed{ \\frac{1}{2} }.", "\\frac{1}{2}"),
    ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),  # escaped braces are characters
    ("\\boxed{\\text{B}}", "B"),
    ("\\boxed{\\mathrm{red}}", "red"),
    ("\\boxed{\\text{a} + \\text{b}}", "\\text{a} + \\text{b}"),
    ("<think>\\boxed{A} or \\boxed{C}?</think>\\boxed{B}", "B"),
    ("<think>\\boxed{A}</think> so B", None),
    ("B", None),
    ("", None),
    ("\\boxed", None),
    ("\\boxed B", None),
    ("\\boxed{}", None),
    ("\\boxed{ \\text{ } }", None),
    ("\\boxed{B", None),
    ("\\boxed{B\\}", None),
    ("\\boxed{A}\\boxed{B}", None),
    ("\\boxed{\\boxed{B}}", None),
]


@pytest.mark.parametrize(("completion", "expected"), TEXTS)
def test_completion_text_is_what_the_assistant_wrote(completion, expected):
    assert completion_text(completion) == expected


@pytest.mark.parametrize("completion", [None, 3, ["text"], {"content": "x"}])
def test_completion_text_refuses_what_is_no_completion(completion):
    with pytest.raises(TypeError, match="text or a list of messages"):
        completion_text(completion)


@pytest.mark.parametrize(("text", "expected"), ANSWERS)
def test_extract_answer_wants_exactly_one_pair(text, expected):
    assert extract_answer(text) == expected


@pytest.mark.parametrize(("text", "expected"), BOXES)
def test_extract_boxed_wants_exactly_one_box_after_the_thinking(text, expected):
    assert extract_boxed(text) == expected
