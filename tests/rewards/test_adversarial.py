"""Attempts of a policy to exploit the rewards: a table of completions, the score of each, and why."""

import pytest

from trl_perception.rewards import (
    accuracy_reward,
    answer_format_reward,
    boxed_accuracy_reward,
    format_reward,
    get_reward,
)

CHOICE = ("multiple choice", "B")
NUMBER = ("numerical", "3")
AMOUNT = ("regression", "10")
SIGN = ("OCR", "KEEP LEFT")
WORDS = ("free-form", "red car")
TEXT = ("free text", "a red car turns left")
MATHS = ("mathematics", "\\frac{1}{2}")
SPAN = ("temporal grounding", "2 to 3")
BOX = ("box grounding", "[0, 0, 10, 10]")
OPTIONS = ["red", "blue", "green"]

# (problem type, solution), completion, accuracy, why
TABLE = [
    # No answer, or none that can be identified
    (CHOICE, "", 0, "nothing was written"),
    (CHOICE, "B", 0, "the answer has no tags"),
    (CHOICE, "<answer></answer>", 0, "an empty answer"),
    (WORDS, "<answer> \n\t </answer>", 0, "an answer of white space"),
    (WORDS, "<answer>\u200b\u200b</answer>", 0, "an answer of zero-width spaces"),
    (WORDS, "<answer>...</answer>", 0, "an answer of punctuation"),
    (TEXT, "<answer>!?</answer>", 0, "an answer of punctuation"),
    (SIGN, "<answer>--</answer>", 0, "an answer of punctuation"),
    (MATHS, "<answer>{}</answer>", 0, "an answer of braces"),
    (CHOICE, "<answer>null</answer>", 0, "a word for no answer"),
    (NUMBER, "<answer>None</answer>", 0, "a word for no answer"),
    # Tags
    (CHOICE, "<answer>B", 0, "a tag that is never closed"),
    (CHOICE, "B</answer>", 0, "a tag that was never opened"),
    (CHOICE, "</answer>B<answer>", 0, "tags the wrong way round"),
    (CHOICE, "<answer>A</answer><answer>B</answer>", 0, "two answers, the last one right"),
    (CHOICE, "<answer>B</answer><answer>B</answer>", 0, "the right answer twice: which one counts is not told"),
    (CHOICE, "<answer><answer>B</answer></answer>", 0, "nested answers"),
    (CHOICE, "<answer>A<answer>B</answer>", 0, "an answer opened within an answer"),
    (CHOICE, "<think><answer>A</answer></think><answer>B</answer>", 0, "a spare answer in the thinking"),
    (CHOICE, "<ANSWER>B</ANSWER>", 0, "tags in capitals"),
    (CHOICE, "<answer id=1>B</answer>", 0, "a tag with an attribute"),
    (CHOICE, "\uff1canswer\uff1eB\uff1c/answer\uff1e", 0, "full-width angle brackets"),
    (CHOICE, "<answer><think>A or B</think>B</answer>", 0, "thinking inside the answer"),
    (CHOICE, "<answer>\\boxed{B}</answer>", 0, "a box where a letter is asked for"),
    # Several options at once
    (CHOICE, "<answer>A, B, C</answer>", 0, "every letter"),
    (CHOICE, "<answer>ABC</answer>", 0, "every letter"),
    (CHOICE, "<answer>A or B</answer>", 0, "two letters"),
    (CHOICE, "<answer>B (or C)</answer>", 0, "two letters"),
    (CHOICE, "<answer>A. red B. blue C. green</answer>", 0, "the list of options repeated"),
    (CHOICE, "<answer>A. red\nB. blue\nC. green\nD. none</answer>", 0, "the list of options, a line each"),
    (CHOICE, "<answer>red, blue, green</answer>", 0, "the texts of all options"),
    (CHOICE, "<answer>B. red</answer>", 0, "the letter of one option, the text of another"),
    (CHOICE, "<answer>not A</answer>", 0, "what it is not"),
    (CHOICE, "<answer>B. blue</answer>", 1, "the letter and its own text"),
    (CHOICE, "<answer>\n(b)\n</answer>", 1, "one letter, however it is dressed"),
    # Look-alikes
    (CHOICE, "<answer>\u0412</answer>", 0, "a Cyrillic letter that looks like B"),
    (CHOICE, "<answer>\u0392</answer>", 0, "a Greek letter that looks like B"),
    (CHOICE, "<answer>\uff22</answer>", 0, "a full-width B"),
    (CHOICE, "<answer>B\u200b</answer>", 0, "a zero-width space behind the letter"),
    (NUMBER, "<answer>\uff13</answer>", 0, "a full-width 3"),
    (NUMBER, "<answer>\u0663</answer>", 0, "an Arabic-Indic 3"),
    (NUMBER, "<answer>\u00b3</answer>", 0, "a superscript 3"),
    (NUMBER, "<answer>\u2162</answer>", 0, "a Roman 3"),
    (WORDS, "<answer>r\u0435d car</answer>", 0, "a Cyrillic letter that looks like e"),
    (SIGN, "<answer>K\u0415EP LEFT</answer>", 0.5, "one of two words has a Cyrillic letter"),
    (MATHS, "<answer>\uff11/\uff12</answer>", 0, "full-width digits"),
    (SPAN, "<answer>\uff12 to \uff13</answer>", 0, "full-width digits"),
    (BOX, "<answer>[\u0660, 0, 10, 10]</answer>", 0, "an Arabic-Indic zero"),
    # Numbers
    (NUMBER, "<answer>1 2 3 4 5</answer>", 0, "a list that holds the number"),
    (NUMBER, "<answer>3 or 4</answer>", 0, "two numbers"),
    (NUMBER, "<answer>2-4</answer>", 0, "a range around the number"),
    (NUMBER, "<answer>the answer is 3</answer>", 0, "a sentence, not a number"),
    (NUMBER, "<answer>1+2</answer>", 0, "a sum instead of its value"),
    (NUMBER, "<answer>0x3</answer>", 0, "another notation"),
    (NUMBER, "<answer>" + "9" * 100_000 + "</answer>", 0, "a number of a hundred thousand digits"),
    (NUMBER, "<answer>3." + "0" * 100_000 + "</answer>", 0, "more digits than are read"),
    (NUMBER, "<answer>1e999999999</answer>", 0, "a number that overflows"),
    (NUMBER, "<answer>nan</answer>", 0, "not a number"),
    (NUMBER, "<answer>inf</answer>", 0, "infinity"),
    (AMOUNT, "<answer>1e308</answer>", 0, "as far off as floats go"),
    (AMOUNT, "<answer>-inf</answer>", 0, "infinity"),
    (AMOUNT, "<answer>9, 10, 11</answer>", 0, "several guesses"),
    (AMOUNT, "<answer>0</answer>", 0, "the safe guess"),
    # Words
    (WORDS, "<answer>red car blue car green car</answer>", 0, "everything that it could be"),
    (WORDS, "<answer>red car or not</answer>", 0, "hedged"),
    (WORDS, "<answer>RED   car!</answer>", 1, "case, space and punctuation are free"),
    (SIGN, "<answer>KEEP LEFT KEEP RIGHT</answer>", 0, "two surplus words for two wanted: all is lost"),
    (SIGN, "<answer>" + "KEEP LEFT " * 10_000 + "</answer>", 0, "said ten thousand times"),
    # ROUGE-1: 5 shared of 50 and 5, F1 10/55; ROUGE-2: 4 of 49 and 4, 8/53; ROUGE-L as ROUGE-1
    (TEXT, "<answer>" + "a red car turns left " * 10 + "</answer>", (20 / 55 + 8 / 53) / 3, "said ten times"),
    (TEXT, "<answer>" + "a red car turns left " * 500 + "</answer>", 0, "more than 2,000 words"),
    # ROUGE-1 and ROUGE-L: 1 shared of 1 and 5, 2/6; no pair
    (TEXT, "<answer>car</answer>", (2 / 6 + 0 + 2 / 6) / 3, "one safe word"),
    # Mathematics
    (MATHS, "<answer>9^{9^{9^9}}</answer>", 0, "a value that would never be finished"),
    (MATHS, "<answer>10^{10^{10}}!</answer>", 0, "a value that would fill the memory"),
    (MATHS, "<answer>9**9**9</answer>", 0, "the same in Python"),
    (MATHS, "<answer>" + "(" * 100 + "1/2" + ")" * 100 + "</answer>", 0, "brackets that take the parser for ever"),
    (MATHS, "<answer>" + "1/2+0" * 1000 + "</answer>", 0, "longer than is read"),
    (MATHS, "<answer>0, 1/2, 1</answer>", 0, "a list that holds the value"),
    (MATHS, "<answer>1/2 or 1/3</answer>", 0, "two values"),
    (MATHS, "<answer>\\boxed{1/3}\\boxed{1/2}</answer>", 0, "two boxes"),
    (MATHS, "<answer>1/3} \\boxed{1/2</answer>", 0, "braces that end a box early"),
    (MATHS, "<answer>It is not 1/3 but 1/2</answer>", 0, "a sentence with the value at its end"),
    (("mathematics", "yes"), "<answer>yes or no</answer>", 0, "words are compared as words"),
    (("mathematics", "no"), "<answer>on</answer>", 0, "a word is no product of its letters"),
    (MATHS, "<answer>0/0</answer>", 0, "no value"),
    (MATHS, "<answer>\\infty - \\infty</answer>", 0, "no value"),
    (MATHS, "<answer>__import__('os').abort()</answer>", 0, "code"),
    (MATHS, "<answer>$0.5$</answer>", 1, "the value in another form"),
    # Spans: 2 to 3 is wanted
    (SPAN, "<answer>0 to 9999999</answer>", 1 / 9_999_999, "the whole of time: 1 second shared of 9,999,999"),
    (SPAN, "<answer>0 to 10</answer>", 0.1, "the whole clip: 1 second shared of 10"),
    (SPAN, "<answer>0 to 1, 1 to 2, 2 to 3, 3 to 4</answer>", 0.25, "every second: 1 shared of 4"),
    (SPAN, "<answer>2 to 3" + ", 2 to 3" * 1000 + "</answer>", 1, "the same span a thousand times is that span"),
    (SPAN, "<answer>3 to 2</answer>", 0, "back to front"),
    (SPAN, "<answer>2 to 2</answer>", 0, "no length"),
    (SPAN, "<answer>2 to 3 of 1 to 4</answer>", 1 / 3, "two spans count as both: 1 shared of 3"),
    # Boxes: 10 x 10 is wanted
    (BOX, "<answer>[0, 0, 1000, 1000]</answer>", 1e-4, "the whole image: 100 shared of 1,000,000"),
    (BOX, "<answer>[0, 0, 5, 5] [0, 0, 10, 10]</answer>", 0, "two boxes"),
    (BOX, "<answer>[10, 10, 0, 0]</answer>", 0, "corners the wrong way round"),
    (BOX, "<answer>[0, 0, 1e9, 1e9]</answer>", 0, "another notation"),
    (BOX, "<answer>[0, 0, 0, 0]</answer>", 0, "no area"),
]

# What lenient reading (the default) takes off: the accuracy of these entries of the table with it.
UNDRESSED = {
    "a box where a letter is asked for": 1,
    "a full-width B": 1,
    "a zero-width space behind the letter": 1,
    "a full-width 3": 1,
    "full-width digits": 1,
    "a sentence, not a number": 1,
}

# (problem type, solution), completion, accuracy under lenient reading, why
LENIENT_TABLE = [
    # Two options, or an ambiguous one
    (CHOICE, "The answer is not B", 0, "a negation in the phrase"),
    (CHOICE, "It is not B", 0, "a negation before the letter"),
    (CHOICE, "Anything but B", 0, "an exception"),
    (CHOICE, "A is wrong, B is right", 0, "two letters, one taken back"),
    (CHOICE, "Answer: A. Answer: B", 0, "two answers"),
    (CHOICE, "**A** **B**", 0, "two letters in bold"),
    (CHOICE, "\\boxed{A} \\boxed{B}", 0, "two boxes"),
    (CHOICE, "~~B~~", 0, "struck out"),
    (CHOICE, "B?", 0, "a question"),
    (CHOICE, "B. maybe", 0, "a doubt behind the letter"),
    (CHOICE, "B is wrong", 0, "the letter is taken back"),
    (CHOICE, "B - red", 0, "another option's text"),
    (CHOICE, "red (B)", 0, "another option's text before the letter"),
    (CHOICE, "B. blue, red", 0, "its own text and another's"),
    (CHOICE, "B. It is neither", 0, "the letter is taken back behind a mark"),
    (CHOICE, "blue, red, green (B)", 0, "every text"),
    (CHOICE, "（A）（B）", 0, "two letters in full width"),
    (CHOICE, "选A或B", 0, "two letters in Chinese"),
    (CHOICE, "不是B", 0, "a negation in Chinese"),
    (CHOICE, "I choose (B), blue.", 1, "a phrase, the letter and its text"),
    (CHOICE, "So the correct answer is:\n\n**B. blue**", 1, "a phrase over two lines"),
    (CHOICE, "```\nB\n```", 1, "a code fence"),
    (CHOICE, "$\\boxed{\\text{B}}$", 1, "four layers"),
    (CHOICE, "blue is the correct answer", 1, "the text and a phrase behind it"),
    (CHOICE, "B. blue, as the sky", 1, "words that name no other option"),
    # Numbers
    (NUMBER, "3 million", 0, "a word that multiplies"),
    (NUMBER, "3k", 0, "a letter that multiplies"),
    (NUMBER, "3!", 0, "a factorial"),
    (NUMBER, "3 or 4 m", 0, "two numbers and a unit"),
    (NUMBER, "about 3", 0, "a word that is no unit"),
    (("numerical", "3 m"), "3 km", 0, "another unit"),
    (("numerical", "0.0001"), "0", 0, "a small value"),
    (NUMBER, "The answer is **3 kg**.", 1, "a phrase, bold type and a unit"),
    # Mathematics
    (("mathematics", "12"), "12 x", 0, "a symbol is no unit"),
    (("mathematics", "12"), "12m", 0, "one letter at the number may be a symbol"),
    (("mathematics", "12 x"), "12", 0, "a symbol is no unit in the solution"),
    (("mathematics", "12 cm"), "12 m", 0, "another unit"),
    (("mathematics", "12 cm"), "12 cm^2", 0, "another power of the unit"),
    (("mathematics", "12 cm"), "12 centimetres", 1, "another spelling of the unit"),
    (("mathematics", "10^{-9}x"), "10^{-8}x", 0, "a small factor"),
    (("mathematics", "\\{10^{-9}, 1\\}"), "\\{10^{-8}, 1\\}", 0, "a small element"),
    (("mathematics", "x = 10^{-9}"), "10^{-8}", 0, "a small side of an equation"),
    (("mathematics", "1e-9"), "0", 0, "zero for a small value"),
    (("mathematics", "0"), "1e-9", 0, "a small value for zero"),
    (("mathematics", "10^{20}"), "10^{20}+1", 0, "one more than a large integer"),
    (("mathematics", "50%"), "0.5%", 0, "both in percent"),
    (("mathematics", "1e-9"), "10⁻⁹", 1, "raised digits"),
    # Words
    (("free-form", "3%"), "3", 0, "without its percent"),
    (("free-form", "3"), "3%", 0, "a percent too many"),
    (("free-form", "A+"), "A", 0, "without its plus"),
    (("free-form", "$5"), "5", 0, "without its currency"),
    (("free-form", "10-30"), "1030", 0, "without its range"),
    (("free-form", "well-known"), "well known", 1, "a hyphen between words"),
    # Spans and boxes
    (SPAN, "2 to 3 minutes", 0, "minutes at one end alone"),
    (SPAN, '{"start_time": 3, "end_time": 2}', 0, "back to front by name"),
    (SPAN, '{"start": 2, "end": 3, "event": "2 dogs, 10 to 20"}', 1, "digits inside a label"),
    (SPAN, "2 and 3 and 4", 0, "three times"),
    (BOX, '[{"bbox_2d": [0, 0, 10, 10]}, {"bbox_2d": [0, 0, 5, 5]}]', 0, "two boxes by name"),
    (BOX, '{"box_2d": [0, 0, 10, 10]}', 0, "a key under which y comes first"),
    (BOX, "0 0 10 10 20", 0, "five numbers"),
    (BOX, "[[0, 0, 10], [10]]", 0, "four numbers, not in pairs"),
    (BOX, "[" * 300 + "0, 0, 10, 10" + "]" * 300, 1, "brackets that would take a parser deep"),
]

# (problem type, solution), completion, accuracy of the box, why
BOXED_TABLE = [
    (CHOICE, "\\boxed{B}", 1, "one box"),
    (CHOICE, "\\boxed{A}\\boxed{B}", 0, "two boxes, the last one right"),
    (CHOICE, "\\boxed{\\boxed{B}}", 0, "nested boxes"),
    (CHOICE, "\\boxed{B", 0, "a box that is never closed"),
    (CHOICE, "\\boxed{}B", 0, "an empty box"),
    (CHOICE, "<think>\\boxed{B}</think>", 0, "a box in the thinking alone"),
    (CHOICE, "<think>\\boxed{A}</think>\\boxed{B}", 1, "the box behind the thinking counts"),
    (CHOICE, "<answer>B</answer>", 0, "tags instead of a box"),
    (CHOICE, "\\boxed{A, B, C}", 0, "every letter"),
    (MATHS, "\\boxed{1/3} = \\boxed{1/2}", 0, "two boxes"),
    (MATHS, "\\boxed{\\frac{2}{4}}", 1, "the value in another form"),
    (MATHS, "\\boxed{" * 1000 + "1/2" + "}" * 1000, 0, "a thousand boxes"),
]

# completion, score of format, score of answer_format, why
FORMAT_TABLE = [
    ("<think></think><answer></answer>", 1, 0, "the form is kept; that the answer is empty is for accuracy to say"),
    ("<think>a</think><answer>B</answer>" * 2, 0, 0, "said twice"),
    ("<think><think>a</think></think><answer>B</answer>", 0, 0, "nested thinking"),
    ("<think>a</think><answer><answer>B</answer></answer>", 0, 0, "nested answers"),
    ("<think>a</think><answer>B</answer>\u200b", 0, 0, "a zero-width space behind the end"),
    ("\uff1cthink\uff1ea</think><answer>B</answer>", 0, 0, "full-width angle brackets"),
    ("<think>a</think><answer>B</answer>" + " " * 100_000, 1, 0, "white space is free"),
    ("<answer>" * 100_000, 0, 0, "a hundred thousand opening tags"),
]


@pytest.mark.parametrize(("row", "completion", "expected", "why"), TABLE, ids=[entry[3] for entry in TABLE])
def test_accuracy_of(row, completion, expected, why):
    lenient = [UNDRESSED.get(why, expected)] * 2
    assert scores(accuracy_reward, completion, *row) == pytest.approx(lenient, rel=1e-9, abs=1e-12), why
    exact = get_reward("accuracy(answer_reading='exact')")
    assert scores(exact, completion, *row) == pytest.approx([expected] * 2, rel=1e-9, abs=1e-12), why


@pytest.mark.parametrize(("row", "answer", "expected", "why"), LENIENT_TABLE, ids=[e[3] for e in LENIENT_TABLE])
def test_lenient_accuracy_of(row, answer, expected, why):
    assert scores(accuracy_reward, f"<answer>{answer}</answer>", *row) == [expected] * 2, why


@pytest.mark.parametrize(("row", "completion", "expected", "why"), BOXED_TABLE, ids=[e[3] for e in BOXED_TABLE])
def test_boxed_accuracy_of(row, completion, expected, why):
    assert scores(boxed_accuracy_reward, completion, *row) == [expected] * 2, why


@pytest.mark.parametrize(("completion", "think", "alone", "why"), FORMAT_TABLE, ids=[e[3] for e in FORMAT_TABLE])
def test_format_of(completion, think, alone, why):
    assert format_reward(["?"], [completion], [[1]]) == [think], why
    assert answer_format_reward(["?"], [completion], [[1]]) == [alone], why


def scores(reward, completion, problem_type, solution):
    """As text and as messages."""
    options = OPTIONS if problem_type == "multiple choice" else None
    return reward(
        prompts=["?"] * 2,
        completions=[completion, [{"role": "assistant", "content": completion}]],
        completion_ids=[[1]] * 2,
        solution=[solution] * 2,
        problem_type=[problem_type] * 2,
        options=[options] * 2,
    )
