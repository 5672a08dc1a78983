import pytest

from trl_perception.rewards import choice_letter, get_reward
from trl_perception.rewards.choice import option_letters

OPTIONS = ["red", "A blue car", "Vitamin C", "red."]
LETTERED = ["A. red", "B. blue", "C. green"]

# text, options, letter
TABLE = [
    ("B", None, "B"),
    ("b", None, "B"),
    (" B. ", None, "B"),
    ("(B)", None, "B"),
    ("(b).", None, "B"),
    ("[B]", None, "B"),
    ("B)", None, "B"),
    ("B. red", None, "B"),
    ("B.red", None, "B"),
    ("(B) red", None, "B"),
    ("B: red\nand round", None, "B"),
    ("B. B", None, "B"),
    ("B. A man walks", None, "B"),
    ("B. an X-ray of D'Artagnan's T-shirt", None, "B"),
    ("B. U.S. army", None, "B"),
    # several letters
    ("A, B", None, None),
    ("A B", None, None),
    ("AB", None, None),
    ("A/B", None, None),
    ("A and B", None, None),
    ("B or C", None, None),
    ("(A)(B)", None, None),
    ("A. B.", None, None),
    ("A) b)", None, None),
    ("B. red, C. blue", None, None),
    ("B. red or C", None, None),
    ("B. red\nA.", None, None),
    # no letter
    ("", None, None),
    ("red", None, None),
    ("A man", None, None),
    ("b. red", None, None),
    ("Option B", None, None),
    ("5", None, None),
    ("\u0412", None, None),  # Cyrillic
    ("\uff22", None, None),  # full width
    # with options
    ("b", LETTERED, "B"),
    ("blue", LETTERED, "B"),
    ("  BLUE. ", LETTERED, "B"),
    ("b. blue", LETTERED, None),
    ("B. blue", LETTERED, "B"),
    ("B. bluish", LETTERED, "B"),
    ("B. green", LETTERED, None),
    ("blue or green", LETTERED, None),
    ("blu", LETTERED, None),
    ("a blue car", OPTIONS, "B"),
    ("B. A blue car", OPTIONS, "B"),
    ("Vitamin C", OPTIONS, "C"),
    ("C. Vitamin C", OPTIONS, "C"),
    ("B. Vitamin C", OPTIONS, None),
    ("red", OPTIONS, None),  # the text of A and of D
    ("A. red", OPTIONS, "A"),
    ("C", ["C", "B", "A"], "C"),  # a single letter is a letter, for any texts
    ("B. Hall H", LETTERED, "B"),  # there is no option H
    ("A. Smith", ["B. Jones", "A. Smith"], "B"),
    ("", [""], None),
    ("1", [1, 2], "A"),
]


@pytest.mark.parametrize(("text", "options", "expected"), TABLE)
def test_choice_letter(text, options, expected):
    assert choice_letter(text, options) == expected


SEVERAL = [
    # text, letters
    ("A, C", "AC"),
    ("C,A", "AC"),
    ("A and C", "AC"),
    ("A, B and C", "ABC"),
    ("AC", "AC"),
    ("**A, C**", "AC"),
    ("A. red; C. green", "AC"),
    ("red, green", "AC"),
    ("A\nC", "AC"),
    ("B", "B"),
    ("A, A", "A"),
    ("A, not C", None),
    ("A or C", None),
    ("A, purple", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "letters"), SEVERAL)
def test_all_options_that_an_answer_names(text, letters):
    assert option_letters(text, ["red", "blue", "green"]) == (None if letters is None else frozenset(letters))


def test_partial_credit_by_hand():
    # two of three right options: 2/3; a wrong one beside a right one: 0; none that can be read: 0
    answers = ["A, C", "A", "A, B", "maybe A", "A, C, D"]
    columns = {"problem_type": ["multiple choice"] * 5, "solution": [["A", "C", "D"]] * 5}
    columns["options"] = [["red", "blue", "green", "white"]] * 5
    completions = [f"<answer>{answer}</answer>" for answer in answers]
    for name in ("accuracy", "boxed_accuracy"):
        texts = completions if name == "accuracy" else [f"\\boxed{{{answer}}}" for answer in answers]
        scores = get_reward(f"{name}(partial_credit=True)")(prompts=answers, completions=texts, **columns)
        assert scores == pytest.approx([2 / 3, 1 / 3, 0.0, 0.0, 1.0])
    # without it any of the list is right, and several letters are no answer
    scores = get_reward("accuracy")(prompts=answers, completions=completions, **columns)
    assert scores == [0.0, 1.0, 0.0, 0.0, 0.0]
    exact = get_reward("accuracy(partial_credit=True, answer_reading='exact')")
    assert exact(prompts=answers, completions=completions, **columns) == pytest.approx([2 / 3, 1 / 3, 0, 0, 1])
    with pytest.raises(ValueError, match="partial_credit is 1; set it to True or False"):
        get_reward("accuracy(partial_credit=1)")
