"""Reads which option an answer picks."""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from string import ascii_uppercase

from trl_perception.rewards.reading import undress, without_commands
from trl_perception.rewards.wording import bare_words

# Applied to text with single spaces. "B", "b", "(B)", "B.", "B)":
_ALONE = re.compile(r"[(\[]? ?([A-Za-z]) ?[)\].:]*")
# "B. red", "(B) red": a capital, its mark, then words. Without the mark, "A man" would be a letter.
_MARKED = re.compile(r"[(\[]? ?([A-Z]) ?[)\].:]+ ?(.*)", re.DOTALL)
# A further letter among those words; "A" before a word is the article, "X-ray" and "D'Artagnan" are words.
# Without decoration, any of these may surround or separate: "(B", "B:", "[[b]]", "B!"
_BARE_LETTER = re.compile(r"[(\[{<]{0,2} ?([A-Za-z]) ?[)\]}>.:!]*")
_LETTER_FIRST = re.compile(r"[(\[{<]? ?([A-Za-z])(?: ?[)\]}>.:;,=→–—-]+ ?| |(?=[(\[]))(.+)", re.DOTALL)
_LETTER_ON_A_LINE = re.compile(r"^\s*([A-Z])\s*\n")
_LETTER_LAST = re.compile(r"(?: ?[(\[:,=–—-]{1,3} ?| )([A-Za-z]) ?[)\].]{0,3}$")
# The only words that may surround an option without being part of it.
_BEFORE = re.compile(
    r"(?:(?:i(?: would| will|'d|'ll)? )?(?:choose|pick|select|say|think|believe|go with)|it(?:'s| is| must be| would be)|"
    r"this is|that(?:'s| is)|(?:the )?(?:correct |right |best )?(?:option|choice|answer|letter))(?=[ :(\[\"']) ?:? ?"
    r"|(?:我|应|應|应该|故|所以)?(?:选择|選擇|选项|選項|选|選)(?:的?是)? ?:? ?",
    re.IGNORECASE,
)
_AFTER = re.compile(
    r",? (?:is|would be|must be|seems)(?: the| my)?(?: (?:correct|right|best|most likely|final)(?: (?:answer|option|choice|one))?| "
    r"(?:answer|choice))$|(?:项|選項|选项)?(?:是|为)?(?:正确的?|正確的?|对的|です|입니다)?$",
    re.IGNORECASE,
)
# Between several options.
_SEPARATORS = re.compile(r" ?(?:[,;\n]|\band\b)+ ?(?:and\b ?)?")
_LETTERS = re.compile(r"[A-Z]{2,}")
_HEDGE = re.compile(
    r"\b(?:not?|nor|neither|either|never|none|wrong|incorrect|false|or|but|maybe|perhaps|possibly|unsure|both|all|any)\b|"
    r"n't\b|[不没非或错]|\?|"
    r"\b(?:nicht|falsch|oder|pas|faux|fausse|ou|pero|falso|falsa|incorrect[aeo]s?|sbagliat[ao]|не|или|нет)\b"
)
_FURTHER = re.compile(r"(?<![\w-])(?:[B-H](?![\w'’+#-])|A(?![\w'’+#-])(?! [A-Za-z]{2})|[a-h](?=[)\]]))")


def choice_letter(text: str, options: Sequence[str] | None = None) -> str | None:
    """Return the capital letter of the one option that a text picks, or None if it picks none or several.

    Tried in this order: the letter of an option alone ("B", "b", "(B)", "B."); with options, the text of one option,
    ignoring case, spacing and a final full stop; a marked capital before words ("B. red"), unless the words are another
    option's text or name another letter ("B. red, C. blue").

    Args: options: the texts of options A, B, ... in order, with or without their letters ("A. red").
    """
    text = " ".join(text.split())
    texts = dict(zip(ascii_uppercase, _option_texts(options or ()), strict=False))
    if (alone := _letter_alone(_ALONE, text)) and (alone in texts or not texts):
        return alone
    picked = [letter for letter, option in texts.items() if option and option == _plain(text)]
    if len(picked) == 1:
        return picked[0]
    if alone or not (marked := _MARKED.fullmatch(text)):
        return alone
    letter, words = marked.groups()
    if texts.get(letter) == _plain(words):
        return letter
    further = {found.upper() for found in _FURTHER.findall(words)} - {letter}
    if texts:
        further &= set(texts)
    return None if further or _plain(words) in texts.values() else letter


def option_letter(text: str, options: Sequence[str] | None = None) -> str | None:
    """Return the capital letter of the one option that a text names, in any form; None if none or several can be meant.

    An option is named by its letter, its text, or both, in either order, with brackets or a mark between: "**B**",
    "b) blue", "B - blue", "blue (B)", "The answer is B.", "答案：B". Only a fixed set of phrases may surround it
    ("option", "I choose", "is correct"). A marked capital ("B. blue, as the sky") may be followed by other words, if
    they name no other option and do not express doubt. A letter with another option's text names two options; so do two
    letters.

    Args: options: as for `choice_letter`.
    """
    text = without_commands(text).replace("\\ ", " ").replace("**", "")
    text = " ".join(_LETTER_ON_A_LINE.sub(r"\1. ", undress(text)).split())
    forms = _texts(tuple(map(str, options or ())))
    for said in (text, text := _framed(text)):  # whole first: "It is blue" may be an option
        if (alone := _letter_alone(_BARE_LETTER, said)) and (alone in forms[_plain] or not options):
            return alone
        for form, texts in forms.items():
            wanted = form(said)
            if len(picked := [letter for letter, option in texts.items() if option and option == wanted]) == 1:
                return picked[0]
    if alone:
        return alone
    plain = forms[_undressed]
    if last := _LETTER_LAST.search(text, max(0, len(text) - 12)):
        words, letter = text[: last.start()], last[1].upper()
        if plain.get(letter) and plain[letter] == _undressed(words):
            return letter
    if first := _LETTER_FIRST.fullmatch(text):
        letter, words = first[1].upper(), first[2]
        rest = re.sub(r"^[(\[](.*)[)\]]$", r"\1", words.strip(), flags=re.DOTALL)
        if plain.get(letter) and plain[letter] in (_undressed(words), _undressed(rest)):
            return letter
        if choice_letter(text, options) == letter and not _doubted(words, letter, plain):
            return letter
    return None


def option_letters(text: str, options: Sequence[str] | None = None, *, exact: bool = False) -> frozenset[str] | None:
    """Return the capital letters of all options that a text names; None if a part of it names none or several.

    The options are separated by commas, semicolons, "and" or lines ("A, C", "A. red; C. blue"), or are letters side by side
    ("AC").

    Args: options: as for `choice_letter`; exact: whether each part is read by `choice_letter` instead of `option_letter`.
    """
    read = choice_letter if exact else option_letter
    if (one := read(text, options)) is not None:
        return frozenset(one)
    text = undress(text)
    parts = list(text) if _LETTERS.fullmatch(text) else _SEPARATORS.split(text)
    found = [read(part, options) for part in parts]
    return None if None in found else frozenset(found)


def require_partial_credit(partial_credit: bool) -> None:
    """Raises: ValueError for a value that is not a bool."""
    if not isinstance(partial_credit, bool):
        raise ValueError(f"partial_credit is {partial_credit!r}; set it to True or False.")


def overlap(found: frozenset[str], wanted: frozenset[str]) -> float:
    """|found| / |wanted| where every option found is wanted, else 0."""
    return len(found) / len(wanted) if found <= wanted else 0.0


def _letter_alone(form: re.Pattern, text: str) -> str | None:
    found = form.fullmatch(text)
    return found and found[1].upper()


def _framed(text: str) -> str:
    """Return the text with single spaces and without the phrases that may surround an option."""
    for _ in range(4):
        before, text = text, undress(_AFTER.sub("", _BEFORE.sub("", text, count=1) if _BEFORE.match(text) else text))
        if text == before:
            break
    return text


def _doubted(words: str, letter: str, texts: dict[str, str]) -> bool:
    """Whether the words after a letter retract it, or name another option too."""
    said = f" {_words(words)} "
    if own := _words(texts.get(letter, "")):
        said = said.replace(f" {own} ", " ")
    others = (_words(option) for other, option in texts.items() if other != letter)
    return bool(_HEDGE.search(said)) or any(
        other and (f" {other} " in said or (not other.isascii() and other in said)) for other in others
    )


def _words(text: str) -> str:
    return " ".join(re.sub(r"[^\w?'-]+", " ", text.casefold()).split())


@lru_cache(maxsize=1024)
def _texts(options: tuple[str, ...]) -> dict[Callable, dict[str, str | None]]:
    """Return form -> letter -> option text in that form: as written, without decoration, or words and signs alone."""
    written = dict(zip(ascii_uppercase, _option_texts(options), strict=False))
    forms = (_plain, _undressed, bare_words)
    return {form: {letter: form(text) for letter, text in written.items()} for form in forms}


def _undressed(text: str) -> str:
    return " ".join(undress(without_commands(text)).casefold().split())


def _option_texts(options: Sequence[str]) -> list[str]:
    """Return the options in plain form, without their letters if every option starts with its own."""
    marks = [
        re.match(rf"\s*\(?(?:{letter}|{letter.lower()})[).:、．：]\s*", str(option))
        for letter, option in zip(ascii_uppercase, options, strict=False)
    ]
    if len(marks) == len(options) and all(marks):
        return [_plain(str(option)[mark.end() :]) for option, mark in zip(options, marks, strict=True)]
    return [_plain(str(option)) for option in options]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".").rstrip()
