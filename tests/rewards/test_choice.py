import pytest

from trl_perception.rewards import choice_letter

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
