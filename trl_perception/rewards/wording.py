"""Compares answers in words: exact match, word error rate, and ROUGE."""

import re
import unicodedata
from functools import cache
from typing import Any

from trl_perception.rewards.packages import needed
from trl_perception.rewards.reading import PLAIN_SCRIPTS, RAISED

_WORD = re.compile(r"[^\W_]+")
_PLAIN = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-") | {"’": "'"})
_RAISED = re.compile(f"[{RAISED}]+")
# Where punctuation carries a value: "-x", "10-30", "A-"; "3.5", "10:30"; "3%"; "5!", "n!"; "C#"; primes.
_VALUED = re.compile(
    r"(?<![^\W_])-(?=[^\W_]|\.)|(?<=[0-9])-(?=[0-9])|(?<![^\W_]{3})(?<=[^\W_])-(?![^\W_])|[.,:/](?=\d)"
    r"|(?:(?<=[^\W_])|(?<=\s)|^)[%‰]|(?:(?<=\d)|(?<![^\W_]{2})(?<=[a-z]))!|(?<=[^\W\d_])#|[′″]"
)
# The same for signs that otherwise come in pairs: "A*", "f'", "5'".
_UNPAIRED = re.compile(r"(?<=[^\W_])\*|(?:(?<=\d)|(?<![^\W_]{2})(?<=[a-z]))'(?![^\W_])|(?<=\d)\"")
_HALF_OPEN = re.compile(r"\[[^][()]{1,40},[^][()]{1,40}\)|\([^][()]{1,40},[^][()]{1,40}\]")
_BETWEEN = re.compile(r"(?<=[0-9]) ?([-:/]) ?(?=[0-9])")  # spaces around a sign between digits
_STEMMED_LENGTHS = range(4, 41)  # nltk's stemmer recurses along a run of "y"
MAX_ROUGE_WORDS = 2000


def bare_words(text: str) -> str | None:
    """Return case-folded words and the signs that carry a value, with single spaces; None without a letter or digit.

    Signs that count, whatever their spacing: symbols ("+", "=", "$", "°"), "%" and "‰" ("3%"), "!" and primes after a
    digit or a single letter ("5!", "f'"), "#" and a single "*" after a letter ("C#", "A*"), brackets of half-open
    intervals ("[0, 1)"), a minus ("-x", "-3", "A-"), and "-", ".", ",", ":", "/" between digits ("10-30", "3.5") or
    before the first ("-.5"). Superscript digits are a power ("x²", "x^2"). All other punctuation is removed, and so is
    a hyphen between words.
    """
    text = unicodedata.normalize("NFC", text.casefold()).translate(_PLAIN)
    text = _RAISED.sub(lambda match: "^" + match[0].translate(PLAIN_SCRIPTS), text).translate(PLAIN_SCRIPTS)
    text = _BETWEEN.sub(r"\1", " ".join(text.split()))
    single = {sign for sign in "*'\"" if text.count(sign) == 1}
    valued = {match.start() for match in _VALUED.finditer(text)}
    valued |= {match.start() for match in _UNPAIRED.finditer(text) if match[0] in single}
    valued |= {place for match in _HALF_OPEN.finditer(text) for place in (match.start(), match.end() - 1)}
    words = []
    for place, char in enumerate(text):
        category = unicodedata.category(char)[0]
        if (category == "P" and place not in valued) or char == "`":
            words.append(" ")
        else:
            words.append(char if category not in "PS" or char in ".,:/" else f" {char} ")
    said = " ".join("".join(words).split())
    return said if any(char.isalnum() for char in said) else None


def spaced_words(text: str) -> str | None:
    """Return the text composed (NFC), with single spaces; None without a letter or digit."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return text if any(char.isalnum() for char in text) else None


def word_accuracy(found: str, wanted: str) -> float:
    """max(0, 1 - WER), WER = (substituted + deleted + inserted words) / words wanted, case and punctuation counting.

    Args: both with single spaces, as `spaced_words` returns them.
    Source: arXiv:2503.21776 (Video-R1), OCR reward; the rate is jiwer's.
    """
    # With twice the words, the insertions alone give an error rate of 1: long texts need no alignment.
    if len(found.split()) >= 2 * len(wanted.split()):
        return 0.0
    return max(0.0, 1.0 - needed("jiwer", "jiwer", "OCR").wer(wanted, found))


def separate_words(text: str) -> tuple[str, ...] | None:
    """Return the runs of letters and digits of any script, case-folded and composed (NFC); None without any."""
    return tuple(_WORD.findall(unicodedata.normalize("NFC", text.casefold()))) or None


def rouge(found: tuple[str, ...], wanted: tuple[str, ...]) -> float:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L on stemmed words; of ROUGE-1 and ROUGE-L if `wanted` is one word.

    F1 of ROUGE-n = 2 * shared n-grams / (n-grams found + n-grams wanted), ROUGE-L: the longest common subsequence

    An answer of more than 2,000 words scores 0. Words of 4 to 40 letters are stemmed (Porter).

    Args: both as `separate_words` returns them.
    Source: arXiv:2503.21776 (Video-R1), free-form reward. Differs: words of every script count, not a-z alone; ROUGE-2,
        which limits a correct answer of one word to 2/3 in the release, is left out for a single word.
    """
    if len(found) > MAX_ROUGE_WORDS:
        return 0.0
    kinds = ["rouge1", "rouge2", "rougeL"] if len(wanted) > 1 else ["rouge1", "rougeL"]
    scorer = needed("rouge_score.rouge_scorer", "rouge-score", "free text").RougeScorer(kinds, tokenizer=_Stems())
    return sum(score.fmeasure for score in scorer.score(wanted, found).values()) / len(kinds)


class _Stems:
    """The scorer's tokenizer, for words that are already separate."""

    def tokenize(self, words: tuple[str, ...]) -> list[str]:
        return [_stemmer().stem(word) if len(word) in _STEMMED_LENGTHS else word for word in words]


@cache
def _stemmer() -> Any:
    return needed("nltk.stem.porter", "rouge-score", "free text").PorterStemmer()
