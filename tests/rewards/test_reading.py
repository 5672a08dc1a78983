"""What is stripped from an answer, and what is kept."""

import pytest

from trl_perception.rewards import option_letter
from trl_perception.rewards.reading import undress
from trl_perception.rewards.units import split_unit
from trl_perception.rewards.wording import bare_words

UNDRESSED = [
    (" B \n", "B"),
    ("**B**", "B"),
    ("__B__", "B"),
    ("*B*", "B"),
    ("**red** car", "red car"),
    ("`B`", "B"),
    ("```json\n[1]\n```", "[1]"),
    ("```3```", "3"),
    ('"B"', "B"),
    ("“B”", "B"),
    ("「B」", "B"),
    ("'B'", "B"),
    ("$B$", "B"),
    ("$$B$$", "B"),
    ("\\(B\\)", "B"),
    ("\\boxed{\\text{B}}", "B"),
    ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
    ("Answer: B", "B"),
    ("The answer is B.", "B"),
    ("So, the final answer is: **B**", "B"),
    ("答案：B。", "B"),
    ("正确答案是B", "B"),
    ("答えは B", "B"),
    ("정답: B", "B"),
    ("Réponse : B", "B"),
    ("La respuesta es B", "B"),
    ("Die Antwort ist B", "B"),
    ("Ответ: B", "B"),
    ("B।", "B"),
    ("（Ｂ）", "(B)"),
    ("−３．５％", "-3.5%"),
    ("B\u200b", "B"),
    # left on
    ("A** B **", "A** B **"),
    ('"A" or "B"', '"A" or "B"'),
    ("$5 and $6", "$5 and $6"),
    ("$5", "$5"),
    ("\\boxed{A} \\boxed{B}", "\\boxed{A} \\boxed{B}"),
    ("The answer is not B", "not B"),
    ("answering machine", "answering machine"),
    ("2**3**2", "2**3**2"),
    ("5!", "5!"),
    ("-5", "-5"),
    ("10³", "10³"),
    ("½", "½"),
    ("\u0663", "\u0663"),
    ("wait...", "wait..."),
    ("", ""),
]

# text, value, unit; the same with letters that may be symbols: value
UNITS = [
    ("12 cm", "12", "cm", "12"),
    ("12cm", "12", "cm", "12"),
    ("12m", "12", "m", "12m"),
    ("12 m", "12", "m", "12"),
    ("12 x", "12 x", None, "12 x"),
    ("12 n", "12 n", None, "12 n"),
    ("x^2 + 3 m", "x^2 + 3", "m", "x^2 + 3 m"),
    ("12 kg·m/s²", "12", "kg·m·s^-2", "12"),
    ("12 meters per second squared", "12", "m·s^-2", "12"),
    ("60 kilometers per hour", "60", "km/h", "60"),
    ("5 square feet", "5", "ft^2", "5"),
    ("-$5", "-5", "$", "-5"),
    ("€5", "5", "€", "5"),
    ("5 USD", "5", "$", "5"),
    ("75\\%", "75", "%", "75"),
    ("30^{\\circ}", "30", "°", "30"),
    ("30 degrees Celsius", "30", "°C", "30"),
    ("12\\,\\mathrm{m/s}^2", "12", "m·s^-2", "12"),
    ("2\\pi \\text{ cm}", "2\\pi", "cm", "2\\pi"),
    ("3 million", "3 million", None, "3 million"),
    ("3秒", "3", "s", "3"),
    ("cm", "cm", None, "cm"),
]

# two texts, whether their words and signs are the same
WORDS = [
    ("COVID-19", "covid 19", True),
    ("10-30", "10 – 30", True),
    ("-3", "−3", True),
    ("3 %", "3%", True),
    ("C #", "C#", False),
    ("Yes!", "yes", True),
    ("it's", "it’s", True),
    ("1/2", "1 / 2", True),
    ("5!", "5", False),
    ("A*", "A", False),
    ("A+", "A", False),
    ("x′", "x", False),
    ("30°", "30", False),
    ("< 5", "5", False),
    ("temperature -3", "temperature 3", False),
    ("3.5", "35", False),
    ("10-30", "10 30", False),
    ("x²", "x2", False),
]

OPTIONS = ["red", "blue", "green", "yellow"]
NAMES_B = [
    "B",
    "(b)",
    "[B]",
    "B!",
    "b) blue",
    "B - blue",
    "B: Blue.",
    "blue (B)",
    "Option B",
    "I choose B.",
    "选B",
    "答えはBです",
]
NAMES_B += [
    "B is the correct answer",
    "The correct option is: (B) “blue”",
    "**B.** blue",
    "\\textbf{(B)}\\ blue",
    "It is blue.",
]
NAMES_NONE = [
    "A or B",
    "B red",
    "B, C",
    "not B",
    "B is wrong",
    "everything except B",
    "B, but A",
    "AB",
    "B?",
    "blue or green",
]
NAMES_NONE += [
    "A is wrong, B is right",
    "B. blue. No, red",
    "either blue",
    "",
    "the second",
    "A B",
    "bl",
    "B. wrong",
    "(A)(B)",
]


@pytest.mark.parametrize(("text", "expected"), UNDRESSED)
def test_dress_is_taken_off_and_meaning_is_left(text, expected):
    assert undress(text) == expected
    assert undress(expected) == expected


@pytest.mark.parametrize(("text", "value", "unit", "beside_symbols"), UNITS)
def test_a_unit_is_set_apart(text, value, unit, beside_symbols):
    assert split_unit(text) == (value, unit)
    assert split_unit(text, algebra=True)[0] == beside_symbols


@pytest.mark.parametrize(("one", "other", "same"), WORDS)
def test_signs_that_carry_a_value_count(one, other, same):
    assert (bare_words(one) == bare_words(other)) is same


@pytest.mark.parametrize("text", NAMES_B)
def test_one_option_is_named(text):
    assert option_letter(text, OPTIONS) == "B"


@pytest.mark.parametrize("text", NAMES_NONE)
def test_no_option_or_several_are_named(text):
    assert option_letter(text, OPTIONS) is None
