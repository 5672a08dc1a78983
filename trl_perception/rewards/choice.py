"""Which option an answer picks."""

import re
from collections.abc import Sequence
from string import ascii_uppercase

# Applied to text with single spaces. "B", "b", "(B)", "B.", "B)":
_ALONE = re.compile(r"[(\[]? ?([A-Za-z]) ?[)\].:]*")
# "B. red", "(B) red": a capital, its mark, then words. Without the mark, "A man" would be a letter.
_MARKED = re.compile(r"[(\[]? ?([A-Z]) ?[)\].:]+ ?(.*)", re.DOTALL)
# A further letter among those words; "A" before a word is the article, "X-ray" and "D'Artagnan" are words.
_FURTHER = re.compile(r"(?<![\w-])(?:[B-H](?![\w'’+#-])|A(?![\w'’+#-])(?! [A-Za-z]{2})|[a-h](?=[)\]]))")


def choice_letter(text: str, options: Sequence[str] | None = None) -> str | None:
    """The capital letter of the one option that a text picks, or None where it picks none or several.

    Read in this order: a letter alone ("B", "b", "(B)", "B."); with options, the exact text of one option, but for
    case, spacing and a final full stop; a marked capital before words ("B. red"), unless the words are another
    option's text or name a further letter ("B. red, C. blue").

    Args: options: the texts of options A, B, ... in order, with or without their letters ("A. red").
    """
    text = " ".join(text.split())
    if alone := _ALONE.fullmatch(text):
        return alone[1].upper()
    texts = dict(zip(ascii_uppercase, _option_texts(options or ()), strict=False))
    picked = [letter for letter, option in texts.items() if option and option == _plain(text)]
    if len(picked) == 1:
        return picked[0]
    if not (marked := _MARKED.fullmatch(text)):
        return None
    letter, words = marked.groups()
    if texts.get(letter) == _plain(words):
        return letter
    further = {found.upper() for found in _FURTHER.findall(words)} - {letter}
    if texts:
        further &= set(texts)
    return None if further or _plain(words) in texts.values() else letter


def _option_texts(options: Sequence[str]) -> list[str]:
    """The options in plain form, without the letters where every option carries its own."""
    marks = [re.match(rf"\s*\(?{letter}[).:]\s*", str(o)) for letter, o in zip(ascii_uppercase, options, strict=False)]
    if len(marks) == len(options) and all(marks):
        return [_plain(str(option)[mark.end() :]) for option, mark in zip(options, marks, strict=True)]
    return [_plain(str(option)) for option in options]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".").rstrip()
