"""Mathematical expressions: comparison by value, independent of form."""

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache

from trl_perception.rewards.math_process import math_process
from trl_perception.rewards.numeric import plain_notation, same_unit
from trl_perception.rewards.reading import LOWERED, PLAIN_SCRIPTS, RAISED, without_commands
from trl_perception.rewards.text import BOXED, extract_boxed
from trl_perception.rewards.units import PERCENT, split_unit
from trl_perception.rewards.wording import bare_words

MAX_LENGTH = 256  # characters of an expression
MAX_NESTED = 8  # brackets; the parser's time doubles with every few more

_WRITTEN = {"°": "^{\\circ}", "×": "\\times ", "÷": "\\div ", "−": "-", "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne "}
_WRITTEN |= {"∞": "\\infty ", "±": "\\pm ", "∪": "\\cup ", "∩": "\\cap ", "⁄": "/", "**": "^", "{,}": ""}
_WRITTEN |= dict.fromkeys("·⋅∙", "\\cdot ")
_MIXED = re.compile(r"([+-]?[0-9]+) ([0-9]+)/([0-9]+)")
_DEGREES = {"∛": "[3]", "∜": "[4]"}
_ROOT = re.compile(r"([√∛∜]|(?<![A-Za-z\\])sqrt) ?([0-9]+(?:\.[0-9]+)?|[A-Za-z]|\([^()]*\))")
_FRACTIONS = re.compile("[¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞]")
_EXPONENT = re.compile(r"\^ ?([+-]?[0-9]+(?:\.[0-9]+)?|\([^()]*\))")
_SCIENTIFIC = re.compile(r"(?<![\w.\\])([0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE]([+-]?[0-9]{1,4})(?![\w.])")
_NAMED = re.compile(r"(?<![A-Za-z\\])([Pp]i|PI|(?:arc)?(?:sin|cos|tan|cot|sec|csc)|log|ln|exp)(?![A-Za-z])")
_SIMPLE = re.compile(r"[+-]?[0-9]{1,20}(?:\.[0-9]{1,20})?")
_DELIMITED = re.compile(r"\$\$?([^$]*)\$\$?|\\\(([^$]*)\\\)|\\\[([^$]*)\\\]", re.DOTALL)
_BRACKET = re.compile(r"\\.|[][(){}]", re.DOTALL)
_NESTING = dict.fromkeys("([{", 1) | dict.fromkeys(")]}", -1)
_WORDS = re.compile(r"[A-Za-z][A-Za-z\s.,;:'-]*")
_LONG_WORD = re.compile(r"[A-Za-z]{3}|\bno\b", re.IGNORECASE)
_FUNCTION = re.compile(r"\b(?:arc)?(?:sin|cos|tan|cot|sec|csc)h?\b|\b(?:sqrt|log|ln|exp|max|min|lim)\b")


@dataclass(frozen=True)
class Expression:
    """A mathematical expression in LaTeX, and the name of its unit as `split_unit` returns it."""

    value: str
    unit: str | None = None


def read_expression(text: str) -> Expression | None:
    r"""Read a text as one LaTeX or plain expression, without `$`, `\( \)` or `\boxed{}` around it, or return None.

    The whole text must be mathematics (a number, term, set, interval, matrix, equation): the answer is never
    extracted from a sentence or a list. Also returns None for more than 256 characters, brackets nested over 8 deep,
    unbalanced braces, digits separated only by spaces, and letters or digits that are neither ASCII nor Greek.

    Plain notation becomes LaTeX: "1e3", "10³", "½", "2pi", "10^-3", "3×10^5", "√2", "sqrt(2)", "10\,000". A unit next
    to a number is split off; letters that may be symbols ("12 x", "12m") are not units. Words ("parallel",
    "\text{Yes}") are not products of letters: they are returned case-folded in `\text{}`.

    Raises: ImportError if math-verify is not installed.
    """
    if len(text) > MAX_LENGTH:
        return None
    text = _bare(text)
    if words := _only_words(text):
        return Expression(f"\\text{{{words}}}")
    value, unit = split_unit(text, algebra=True)
    value = _in_latex(value)
    return Expression(value, unit) if value and _plausible(value) and _readable(value) else None


@lru_cache(maxsize=4096)
def _readable(expression: str) -> bool:
    return _SIMPLE.fullmatch(expression) is not None or math_process.ask(expression)


@lru_cache(maxsize=4096)
def equal_expressions(found: Expression, wanted: Expression) -> bool:
    """Whether both have the same value according to math-verify: 1/2, 0.5 and 50 % agree, and x = 3 agrees with 3.

    A decimal agrees with a value v to 1e-6 min(1, |v|), |v| the larger of both; without decimals equality is exact.
    A unit on only one side is ignored, and units are never converted; percent are hundredths, or the number itself when
    compared with a plain number.

    math-verify's own time limit is a signal handler: it works in the main thread only, and never while C code raises 9
    to a huge power. Here sympy runs in a separate process, limited to 2 seconds of processor time and 4 GiB of memory
    per comparison; a comparison that exceeds them returns False. Calls from all threads share that process.

    Words are compared as words. `read_expression` returns both arguments.
    """
    if _only_words(found.value) or _only_words(wanted.value):
        return found == wanted
    percent = (found.unit == PERCENT) - (wanted.unit == PERCENT)
    if not percent:
        return same_unit(found.unit, wanted.unit) and math_process.ask(wanted.value, found.value)
    if {found.unit, wanted.unit} != {PERCENT, None}:
        return False
    share = f"\\frac{{{(found if percent > 0 else wanted).value}}}{{100}}"
    hundredths = (wanted.value, share) if percent > 0 else (share, found.value)
    return math_process.ask(wanted.value, found.value) or math_process.ask(*hundredths)


def _bare(text: str) -> str:
    """Remove what commonly surrounds an expression."""
    text = text.strip().removesuffix(".").strip()
    if BOXED in text:
        text = extract_boxed(text) or ""
    if delimited := _DELIMITED.fullmatch(text):
        text = next(part for part in delimited.groups() if part is not None)
    return text.strip()


def _in_latex(text: str) -> str:
    """Convert plain notation to LaTeX."""
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text) if _MIXED.fullmatch(text) else text
    for sign, latex in _WRITTEN.items():
        text = text.replace(sign, latex)
    text = _FRACTIONS.sub(lambda match: "\\frac{{{}}}{{{}}}".format(*_parts(match[0])), text)
    text = re.sub(f"[{RAISED}]+", lambda match: f"^{{{match[0].translate(PLAIN_SCRIPTS)}}}", text)
    text = re.sub(f"[{LOWERED}]+", lambda match: f"_{{{match[0].translate(PLAIN_SCRIPTS)}}}", text)
    text = plain_notation(
        _ROOT.sub(lambda match: f"\\sqrt{_DEGREES.get(match[1], '')}{{{match[2].strip('()')}}}", text)
    )
    text = _EXPONENT.sub(lambda match: f"^{{{match[1].strip('()')}}}", text)
    text = _SCIENTIFIC.sub(r"(\1 \\times 10^{\2})", text)
    return _NAMED.sub(lambda match: f"\\{match[1].lower()} ", text).strip()


def _parts(fraction: str) -> list[str]:
    return unicodedata.normalize("NFKC", fraction).split("⁄")


def _plausible(text: str) -> bool:
    if any(char.isalnum() and not (char.isascii() or "GREEK" in unicodedata.name(char, "")) for char in text):
        return False
    braces = nested = 0
    for bracket in _BRACKET.findall(text):
        braces += {"{": 1, "}": -1}.get(bracket, 0)
        nested += _NESTING.get(bracket[-1], 0)
        if braces < 0 or nested > MAX_NESTED:
            return False
    return braces == 0 and not re.search(r"(?<![_^])[0-9]\s+[0-9]", text)


def _only_words(text: str) -> str | None:
    """Return the words if a text is only words: "Yes" and "\\text{not parallel}", but not "xy" or "sin x"."""
    text = without_commands(text)
    if not _WORDS.fullmatch(text) or not _LONG_WORD.search(_FUNCTION.sub(" ", text)):
        return None
    return bare_words(text)
