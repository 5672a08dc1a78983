"""Removes decoration from an answer, the same way for all problem types."""

import re
import unicodedata

ANSWER_READINGS = ("lenient", "exact")

_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200e\u200f\u2060\ufeff\u00ad"), None)
_FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
# Letters and digits in a circle or in a mathematical style: U+24B6 to U+24E9, U+1D400 to U+1D7FF.
_STYLED = {c: unicodedata.normalize("NFKC", chr(c)) for c in (*range(0x24B6, 0x24EA), *range(0x1D400, 0x1D800))}
_STYLED = {code: plain for code, plain in _STYLED.items() if plain.isascii()}
_SIGNS = {
    **dict.fromkeys("\u2212\ufe63\u2010\u2011", "-"),  # minus, small hyphen, hyphen, non-breaking hyphen
    **dict.fromkeys("。｡．۔।።։។᙮", "."),
    **dict.fromkeys("、､،﹐", ","),
    **dict.fromkeys("“”„‟«»「」『』〝〞《》〈〉", '"'),
    **dict.fromkeys("‘’‚‛‹›", "'"),
    **dict.fromkeys("【〔〖", "["),
    **dict.fromkeys("】〕〗", "]"),
    **dict.fromkeys("\u3000\u00a0\u2007\u2009\u200a\u202f", " "),
}
RAISED, LOWERED = "⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹ⁿ", "₊₋₀₁₂₃₄₅₆₇₈₉ₙ"
PLAIN_SCRIPTS = str.maketrans(RAISED + LOWERED, "+-0123456789n" * 2)
_PLAIN = str.maketrans({**_FULL_WIDTH, **_STYLED, **{ord(sign): plain for sign, plain in _SIGNS.items()}, **_INVISIBLE})

_PAIRS = [
    ("**", "**"),
    ("__", "__"),
    ("*", "*"),
    ("_", "_"),
    ("``", "``"),
    ("`", "`"),
    ('""', '""'),
    ('"', '"'),
    ("'", "'"),
]
_PAIRS += [("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")]
_FENCE = re.compile(r"```(?:[\w+-]*[ \t]*\n)?((?:(?!```).)*)```", re.DOTALL)
_COMMANDS = re.compile(r"\\(?:boxed|fbox|text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf)|mbox|emph)\s*\{")
_EMPHASIS = re.compile(r"(?<![\w*])\*\*(?=[^\s*])([^*]{1,200})(?<=[^\s*])\*\*(?![\w*])")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # an escaped character is not a brace
_HTML = re.compile(r"<(b|strong|i|em|u|code|mark)>((?:(?!</?\1>).)*)</\1>", re.DOTALL | re.IGNORECASE)
_DASHED_MINUS = re.compile(r"^[–—](?=[0-9.])")
_HEADING = re.compile(r"#{1,6} ")
_MAX_LAYERS = 8  # of decoration

_NAMES = r"answer|ans\b\.?|option|choice|result|solution"
_PHRASE = re.compile(
    rf"(?:(?:so|thus|hence|therefore|and|then)\b,? ?)?"
    rf"(?:(?:the|my|your|a)\s+)?(?:(?:final|correct|right|best|most likely)\s+){{0,2}}(?:{_NAMES})"
    rf"(?:\s+(?:is|would be|should be|must be|will be)\b\s*(?::|=)?|\s*(?::|=)|\s+[-–—](?=\s)|(?<=ans\.)(?=\s))"
    r"|(?:(?:la|le|il|die|das|a|o|the)\s+)?(?:(?:bonne|richtige|korrekte|правильный|верный)\s+)?"
    r"(?:r[ée]ponse|respuesta|resposta|risposta|antwort|l[öo]sung|ответ|विकल्प|उत्तर)"
    r"(?:\s+(?:finale?|correcta?|correcte|correta|corretta|exacte))?(?:\s+(?:est|es|é|è|ist|lautet|है)\b\s*:?|\s*:|\s+[-–—](?=\s))"
    r"|\[(?:答案|解答|正解)\]"
    r"|(?:所以|因此)?,?(?:最终|正确|最終|正確|正解)?的?(?:答案|选项|選項|结果|答え|回答|解答|正解)(?:应该|應該)?(?:是|为|為|は)?\s*[::]?"
    r"|(?:정답|답)(?:은|:)\s*:?"
    r"|(?:الجواب|الإجابة|الاجابة)(?:\s+(?:هو|هي))?\s*:?"
    r"|(?:jawaban|cevap|đáp án|svar|odpowiedź)\s*:",
    re.IGNORECASE,
)


def require_answer_reading(answer_reading: str) -> None:
    """Raises: ValueError for a value that is not a key of `ANSWER_READINGS`."""
    if answer_reading not in ANSWER_READINGS:
        raise ValueError(f"answer_reading is {answer_reading!r}; set it to one of {', '.join(ANSWER_READINGS)}.")


def undress(text: str) -> str:
    r"""Remove decoration that cannot change the meaning of a text.

    Full-width and similar characters become ASCII ("（B）", "３", "−"); invisible characters are removed. Then these are
    removed, layer by layer from the outside: white space, code fences and backticks, bold and italics, quotes of all
    scripts, `$..$`, `\(..\)`, `\boxed{}`, `\text{}`, HTML tags such as `<b>`, phrases such as "The answer is" and
    "答案：", a final full stop of any script, and commas, colons and semicolons at either end. A dash before a number is a
    minus. Digits and letters of other scripts are unchanged. Linear time.
    """
    text = _EMPHASIS.sub(r"\1", text.translate(_PLAIN))
    for _ in range(_MAX_LAYERS):
        before, text = text, _without_layer(text.strip().strip(",;:").strip())
        if text == before:
            break
    return _DASHED_MINUS.sub("-", text)


def without_commands(text: str) -> str:
    r"""Replace each `\text{..}`, `\mathrm{..}`, `\textbf{..}` (and the like, not nested) by its content."""
    return re.sub(_COMMANDS.pattern + r"([^{}]*)\}", r"\1", text)


def _without_layer(text: str) -> str:
    if fenced := _FENCE.fullmatch(text):
        return fenced[1]
    for opening, closing in _PAIRS:
        inner = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and inner and len(text) >= len(opening + closing):
            bare = inner.replace("\\$", "")
            if (opening if opening[0] == "\\" else opening[-1]) not in bare and closing not in bare:
                return inner
            break
    if html := _HTML.fullmatch(text):
        return html[2]
    if (inner := inside_command(text)) is not None:
        return inner
    phrase = _PHRASE.match(text) or _HEADING.match(text)
    if phrase and (said := text[phrase.end() :].strip()):
        return said
    return text[:-1] if text.endswith(".") and not text.endswith("...") else text


def inside_command(text: str) -> str | None:
    r"""Return the content of a text that is entirely one `\boxed{..}`, `\text{..}` or the like; None for other text."""
    command = _COMMANDS.match(text)
    if command and closing_brace(text, command.end()) == len(text) - 1:
        return text[command.end() : -1]
    return None


def closing_brace(text: str, start: int) -> int | None:
    """Return the index of the brace that closes the one before `start`, or None."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return brace.start()
    return None
