"""Reads and scores the answers of each problem type, and checks solutions against their type."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import ascii_uppercase
from typing import Any

from trl_perception.rewards.boxes import BOX_GROUNDING, box_iou, box_of, parse_box
from trl_perception.rewards.choice import choice_letter, option_letter, option_letters, overlap
from trl_perception.rewards.columns import require_column
from trl_perception.rewards.mathematics import equal_expressions, read_expression
from trl_perception.rewards.numeric import equal_quantities, near_quantities, read_plain_quantity, read_quantity
from trl_perception.rewards.reading import require_answer_reading, undress
from trl_perception.rewards.solutions import plain_value, without_tags
from trl_perception.rewards.temporal import TEMPORAL_GROUNDING, parse_spans, spans_of, temporal_iou
from trl_perception.rewards.text import completion_text
from trl_perception.rewards.wording import bare_words, rouge, separate_words, spaced_words, word_accuracy

MULTIPLE_CHOICE = "multiple choice"


@dataclass(frozen=True)
class Rule:
    """The parsing and scoring of answers of one problem type.

    Args:
        wants: what an answer or a solution of that type must contain, for errors.
        exact: text (for multiple choice: text and options) -> parsed value, None if it cannot be parsed.
        score: (found, wanted), both parsed -> a score in [0, 1].
        lenient: the same as `exact` for decorated text; by default `exact` of the text without decoration.
        structured: whether a list or a mapping is one solution, which `lenient` reads, rather than several.
    """

    wants: str
    exact: Callable[..., Any]
    score: Callable[[Any, Any], float] = lambda found, wanted: float(found == wanted)
    lenient: Callable[..., Any] | None = None
    structured: bool = False

    def read(self, text: str, answer_reading: str, *options: Any) -> Any:
        if answer_reading == "exact":
            return self.exact(text, *options)
        return self.lenient(text, *options) if self.lenient else self.exact(undress(text))


def _number(score: Callable) -> Rule:
    wants = "one finite number, such as '1,234.5' or '3 m'"
    return Rule(wants, read_plain_quantity, score, lambda text: read_quantity(undress(text)))


_BOX = Rule("one box, such as '[10, 20, 30, 40]'", parse_box, box_iou, box_of, structured=True)
RULES = {
    MULTIPLE_CHOICE: Rule(
        "one of its options, by letter, text or both, such as 'B', 'red' or 'B. red'",
        choice_letter,
        lenient=option_letter,
    ),
    "numerical": _number(equal_quantities),
    "regression": _number(near_quantities),
    "OCR": Rule("at least one letter or digit", spaced_words, word_accuracy),
    "free-form": Rule("at least one letter or digit", bare_words),
    "free text": Rule("at least one letter or digit", separate_words, rouge),
    "mathematics": Rule(
        "one expression that math-verify reads, such as '\\frac{1}{2}'",
        read_expression,
        lambda found, wanted: float(equal_expressions(found, wanted)),
    ),
    TEMPORAL_GROUNDING: Rule(
        "time spans, such as '2.0 to 3.5'",
        lambda text: parse_spans(text) or None,
        temporal_iou,
        lambda value: spans_of(value) or None,
        structured=True,
    ),
    **dict.fromkeys(BOX_GROUNDING, _BOX),
}
PROBLEM_TYPES = {name: rule.wants for name, rule in RULES.items()}
"""Problem type -> what an answer or a solution of that type must contain."""


def check_solution(problem_type: Any, solution: Any, options: Any = None) -> None:
    """Check that `accuracy_reward` can score a row with these values.

    Raises: ValueError, one sentence on what was found and what is expected, without the row's name; ImportError if the
        package that scores the problem type is not installed.
    """
    _wanted(problem_type, solution, options, "lenient")


def scores_of(
    reward: str,
    extract: Callable[[str], str | None],
    completions: list,
    columns: Mapping[str, list],
    answer_reading: str,
    only: Iterable[str] | None = None,
    partial_credit: bool = False,
) -> list[float | None]:
    """Score each completion by its row's rule; None for rows of problem types not in `only`.

    Args: reward: the caller's name, for errors; extract: a completion's text -> its answer, None if it has none;
        columns: those of the dataset; `solution` and `problem_type` are required, `options` is optional;
        partial_credit: whether the list of a multiple-choice solution has to be named whole (see `accuracy_reward`).
    Raises: ValueError for a missing column, or naming the row whose values `check_solution` rejects.
    """
    require_answer_reading(answer_reading)
    given = {"options": [None] * len(completions)} | {
        key: column for key, column in columns.items() if column is not None
    }
    solution, problem_type, options = (
        require_column(key, given.get(key), completions, reward) for key in ("solution", "problem_type", "options")
    )
    scores: list[float | None] = []
    for row, (completion, *values) in enumerate(zip(completions, problem_type, solution, options, strict=True)):
        if only is not None and values[0] not in only:
            scores.append(None)
            continue
        try:
            wanted = _wanted(*values, answer_reading)
        except ValueError as error:
            raise ValueError(f"row {row} of the batch: {error}") from error
        answer, rule = extract(completion_text(completion)), RULES[values[0]]
        is_choice = rule is RULES[MULTIPLE_CHOICE]
        also = (_texts(values[2]),) if is_choice else ()
        if is_choice and partial_credit and answer is not None:
            letters = option_letters(answer, *also, exact=answer_reading == "exact")
            scores.append(0.0 if letters is None else overlap(letters, frozenset(wanted)))
            continue
        found = None if answer is None else rule.read(answer, answer_reading, *also)
        scores.append(0.0 if found is None else max(rule.score(found, one) for one in wanted))
    return scores


def _wanted(problem_type: Any, solution: Any, options: Any, answer_reading: str) -> list[Any]:
    """Return the parsed values of a solution; an answer may match any of them."""
    if not isinstance(problem_type, str) or problem_type not in RULES:
        raise ValueError(
            f"unknown problem_type {problem_type!r}; known: {', '.join(RULES)}. "
            "Rename it in the dataset, or score such rows with a reward function of your own."
        )
    rule, texts = RULES[problem_type], _texts(options)
    unsuitable = ValueError(
        f"solution {solution!r} does not suit problem_type {problem_type!r}, which wants {rule.wants}. "
        "Correct or drop the row in the dataset."
    )
    try:
        value = plain_value(solution)
    except ValueError:
        raise unsuitable from None
    if rule.structured and not isinstance(value, str):
        wanted = [rule.lenient(value)]
    else:
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(text, str) for text in values):
            raise unsuitable
        wanted = [_wanted_text(problem_type, without_tags(text), texts, answer_reading) for text in values]
    if not wanted or any(one is None for one in wanted):
        raise unsuitable
    if problem_type == MULTIPLE_CHOICE and texts and not set(wanted) <= set(ascii_uppercase[: len(texts)]):
        raise ValueError(
            f"solution {solution!r} is none of the {len(texts)} options {list(texts)!r}. Correct or drop the row in the dataset."
        )
    return wanted


@lru_cache(maxsize=4096)
def _wanted_text(problem_type: str, text: str, options: tuple[str, ...], answer_reading: str) -> Any:
    """Parse a solution's text as answers are parsed; decoration that no exact answer could match is removed."""
    rule = RULES[problem_type]
    also = (options,) if problem_type == MULTIPLE_CHOICE else ()
    found = rule.read(text, answer_reading, *also)
    return rule.read(text, "lenient", *also) if found is None else found


def _texts(options: Any) -> tuple[str, ...]:
    """Return the option texts, empty for None."""
    listed = options.tolist() if hasattr(options, "tolist") else options
    if not isinstance(listed, Sequence | None) or isinstance(listed, str | bytes):
        raise ValueError(
            f"options must be a list of option texts or None, found {options!r}. "
            "Give the options column one text per option."
        )
    return tuple(map(plain_option, listed or ()))


def plain_option(option: Any) -> str:
    """Return an option's text. Raises: ValueError for an option without text."""
    try:
        text = plain_value(option)
    except ValueError:
        text = None
    if not isinstance(text, str):
        raise ValueError(f"an option is {option!r}; a text is wanted. Give the options column one text per option.")
    return text
