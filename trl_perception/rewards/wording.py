"""Answers in words: equal, nearly equal word by word, or of the same words."""

import re
import unicodedata
from functools import cache
from typing import Any

from trl_perception.rewards.packages import needed

_WORD = re.compile(r"[^\W_]+")
_STEMMED_LENGTHS = range(4, 41)  # nltk's stemmer recurses along a run of "y"
MAX_ROUGE_WORDS = 2000


def bare_words(text: str) -> str | None:
    """Case-folded words with single spaces; punctuation is gone, but for marks that make a number ("-3.5", "10:30")."""
    text = unicodedata.normalize("NFC", text.casefold())
    following = text[1:] + " "
    kept = (
        char if not unicodedata.category(char).startswith("P") or (char in "-.,:/" and after.isdigit()) else " "
        for char, after in zip(text, following, strict=True)
    )
    words = " ".join("".join(kept).split())
    return words if any(char.isalnum() for char in words) else None


def spaced_words(text: str) -> str | None:
    """The text as it is written, composed (NFC), with single spaces; None without any letter or digit."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return text if any(char.isalnum() for char in text) else None


def word_accuracy(found: str, wanted: str) -> float:
    """max(0, 1 - WER), WER = (substituted + deleted + inserted words) / words wanted, case and punctuation counting.

    Args: both with single spaces, as `spaced_words` gives them.
    Source: arXiv:2503.21776 (Video-R1), OCR reward; the rate is jiwer's.
    """
    # With twice the words, the surplus alone makes an error rate of 1: however long the text, there is little to align.
    if len(found.split()) >= 2 * len(wanted.split()):
        return 0.0
    return max(0.0, 1.0 - needed("jiwer", "jiwer", "OCR").wer(wanted, found))


def separate_words(text: str) -> tuple[str, ...] | None:
    """Runs of letters and digits of any script, case-folded and composed (NFC); None without any."""
    return tuple(_WORD.findall(unicodedata.normalize("NFC", text.casefold()))) or None


def rouge(found: tuple[str, ...], wanted: tuple[str, ...]) -> float:
    """Mean F1 of ROUGE-1, ROUGE-2 and ROUGE-L on stemmed words; of ROUGE-1 and ROUGE-L where one word is wanted.

    F1 of ROUGE-n = 2 * shared n-grams / (n-grams found + n-grams wanted), ROUGE-L: the longest common subsequence

    More than 2,000 words found score 0. Words of 4 to 40 letters are stemmed (Porter).

    Args: both as `separate_words` gives them.
    Source: arXiv:2503.21776 (Video-R1), free-form reward. Differs: words of every script count, not a-z alone; a
        single word has no bigram, with which the release holds a right answer of one word to 2/3.
    """
    if len(found) > MAX_ROUGE_WORDS:
        return 0.0
    kinds = ["rouge1", "rouge2", "rougeL"] if len(wanted) > 1 else ["rouge1", "rougeL"]
    scorer = needed("rouge_score.rouge_scorer", "rouge-score", "free text").RougeScorer(kinds, tokenizer=_Stems())
    return sum(score.fmeasure for score in scorer.score(wanted, found).values()) / len(kinds)


class _Stems:
    """The scorer's tokenizer, for words that are separate already."""

    def tokenize(self, words: tuple[str, ...]) -> list[str]:
        return [_stemmer().stem(word) if len(word) in _STEMMED_LENGTHS else word for word in words]


@cache
def _stemmer() -> Any:
    return needed("nltk.stem.porter", "rouge-score", "free text").PorterStemmer()
