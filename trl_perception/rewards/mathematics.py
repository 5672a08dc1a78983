"""Mathematical expressions: equal in value, whatever their form."""

import re
import unicodedata
from functools import lru_cache

from trl_perception.rewards.math_process import math_process
from trl_perception.rewards.text import BOXED, extract_boxed
from trl_perception.rewards.wording import bare_words

MAX_LENGTH = 256  # characters of an expression
MAX_NESTED = 8  # brackets; the parser's time doubles with every few more

_WRITTEN = {"°": "^{\\circ}", "×": "\\times ", "·": "\\cdot ", "÷": "\\div ", "−": "-", "≤": "\\le ", "≥": "\\ge "}
_ROOT = re.compile(r"√ ?([0-9]+|[A-Za-z]|\([^()]*\))")
_DELIMITED = re.compile(r"\$\$?([^$]*)\$\$?|\\\(([^$]*)\\\)|\\\[([^$]*)\\\]", re.DOTALL)
_BRACKET = re.compile(r"\\.|[][(){}]", re.DOTALL)
_NESTING = dict.fromkeys("([{", 1) | dict.fromkeys(")]}", -1)
_STYLE = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z\s.,;:'-]*")
_LONG_WORD = re.compile(r"[A-Za-z]{3}|\bno\b", re.IGNORECASE)
_FUNCTION = re.compile(r"\b(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?\b|\b(?:sqrt|log|ln|exp|max|min|lim)\b")


def read_expression(text: str) -> str | None:
    r"""The one LaTeX or plain expression that the text is, without `$`, `\( \)` or `\boxed{}` around it, or None.

    The text as a whole must read as mathematics (a number, term, set, interval, matrix, equation): the answer is never
    picked out of a sentence or a list. None also for more than 256 characters, brackets nested over 8 deep, unbalanced
    braces, digits with nothing but space between, and letters or digits that are neither ASCII nor Greek.

    Words ("parallel", "\text{Yes}") are no product of letters: they come back case-folded in `\text{}`.

    Raises: ImportError where math-verify is not installed.
    """
    if len(text) > MAX_LENGTH:
        return None
    text = _bare(text)
    if words := _only_words(text):
        return f"\\text{{{words}}}"
    return text if text and _plausible(text) and _readable(text) else None


@lru_cache(maxsize=4096)
def _readable(expression: str) -> bool:
    return math_process.ask(expression)


@lru_cache(maxsize=4096)
def equal_expressions(found: str, wanted: str) -> bool:
    """Whether both have the same value, as math-verify sees it: 1/2, 0.5 and 50 % agree, and x = 3 with 3.

    math-verify's own time limit is a signal handler: it works in the main thread only, and never while C code raises 9
    to a huge power. Here sympy runs in a process of its own, under 2 seconds of processor time and 4 GiB of memory for
    one comparison; what exceeds them is not equal. Calls may come from any thread and share that process.

    Words are equal as words, see `read_expression`, which gives both arguments.
    """
    if _only_words(found) or _only_words(wanted):
        return found == wanted
    return math_process.ask(wanted, found)


def _bare(text: str) -> str | None:
    """The text without what commonly stands around an expression, common signs as LaTeX."""
    text = text.strip().removesuffix(".").strip()
    if BOXED in text:
        text = extract_boxed(text) or ""
    if delimited := _DELIMITED.fullmatch(text):
        text = next(part for part in delimited.groups() if part is not None)
    for sign, latex in _WRITTEN.items():
        text = text.replace(sign, latex)
    return _ROOT.sub(r"\\sqrt{\1}", text).strip()


def _plausible(text: str) -> bool:
    if any(char.isalnum() and not (char.isascii() or "GREEK" in unicodedata.name(char, "")) for char in text):
        return False
    braces = nested = 0
    for bracket in _BRACKET.findall(text):
        braces += {"{": 1, "}": -1}.get(bracket, 0)
        nested += _NESTING.get(bracket[-1], 0)
        if braces < 0 or nested > MAX_NESTED:
            return False
    return braces == 0 and not re.search(r"[0-9]\s+[0-9]", text)


def _only_words(text: str) -> str | None:
    """The words, where a text is nothing else: "Yes" and "\\text{not parallel}", but neither "xy" nor "sin x"."""
    text = _STYLE.sub(r"\1", text)
    if not _WORDS.fullmatch(text) or not _LONG_WORD.search(_FUNCTION.sub(" ", text)):
        return None
    return bare_words(text)
