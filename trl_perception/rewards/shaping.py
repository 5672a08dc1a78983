"""Rewards on the length and the repetitions of a completion. All take parameters."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from trl_perception.rewards.accuracy import accuracy_reward, boxed_accuracy_reward
from trl_perception.rewards.columns import require_column
from trl_perception.rewards.reading import require_answer_reading
from trl_perception.rewards.text import thinking_tags


@dataclass(frozen=True)
class LengthWindow:
    """A bonus for correct answers whose length is within a window.

    r = bonus if accuracy > correct_above and low <= completion tokens <= high, else 0

    Args:
        low, high: bounds in tokens, both inclusive.
        bonus: the reward inside the window.
        correct_above: the accuracy above which a completion counts as correct.
        boxed: whether to use `boxed_accuracy_reward` instead of `accuracy_reward`. Their columns are read.
        answer_reading: how answers are read, "lenient" or "exact", as for these.
        thinking_tag: name of the tags around the thinking, which `boxed_accuracy_reward` reads.
    Raises: ValueError for parameters out of order or out of range.
    Source: arXiv:2503.21776 (Video-R1), section 3.2; the threshold is its release's. Differs: the release gives the
        bonus only if two completions of a prompt are correct.
    """

    low: int = 320
    high: int = 512
    bonus: float = 0.2
    correct_above: float = 0.1
    boxed: bool = False
    answer_reading: str = "lenient"
    thinking_tag: str = "think"

    __name__: ClassVar[str] = "length_window_reward"

    def __post_init__(self):
        if not 0 <= self.low <= self.high:
            raise ValueError(
                f"length_window: low is {self.low}, high is {self.high}; 0 <= low <= high is wanted, in tokens."
            )
        if not 0 <= self.correct_above < 1:
            raise ValueError(f"length_window: correct_above is {self.correct_above}; set it within [0, 1).")
        require_answer_reading(self.answer_reading)
        thinking_tags(self.thinking_tag)

    def __call__(
        self, prompts: list, completions: list, completion_ids: list | None = None, **columns: Any
    ) -> list[float]:
        ids = require_column("completion_ids", completion_ids, completions, self.__name__)
        accuracy = partial(boxed_accuracy_reward, thinking_tag=self.thinking_tag) if self.boxed else accuracy_reward
        scores = accuracy(prompts, completions, ids, **columns, answer_reading=self.answer_reading)
        correct = [score > self.correct_above for score in scores]
        return [
            self.bonus if right and self.low <= len(tokens) <= self.high else 0.0
            for right, tokens in zip(correct, ids, strict=True)
        ]


def soft_overlong(*, max_completion_length: int, cache: int) -> Callable:
    """Return the penalty for completions near or over a length; TRL's `get_soft_overlong_punishment`.

    r = 0 up to max_completion_length - cache tokens, then linear to -1 at max_completion_length, then -1

    Args: max_completion_length: usually the trainer's; cache: tokens before it over which the penalty grows.
    Raises: ValueError unless 0 <= cache <= max_completion_length, both whole numbers.
    Source: arXiv:2503.14476 (DAPO), Eq. 13.
    """
    if not isinstance(max_completion_length, int) or not isinstance(cache, int):
        raise ValueError(
            f"soft_overlong: max_completion_length is {max_completion_length!r}, cache is {cache!r}; "
            "set both to whole numbers of tokens."
        )
    if not 0 <= cache <= max_completion_length:
        raise ValueError(
            f"soft_overlong: cache is {cache}, max_completion_length is {max_completion_length}; "
            "0 <= cache <= max_completion_length is wanted, in tokens."
        )
    from trl.rewards import get_soft_overlong_punishment  # here: scoring alone should not import TRL

    return get_soft_overlong_punishment(max_completion_len=max_completion_length, soft_punish_cache=cache)


def repetition(*, ngram_size: int = 3, max_penalty: float = -1.0) -> Callable:
    """Return the penalty for repeated n-grams; TRL's `get_repetition_penalty_reward`.

    r = max_penalty * (1 - distinct n-grams / n-grams), n-grams of completion tokens; 0 below ngram_size tokens

    Args: ngram_size: tokens of an n-gram; max_penalty: the limit of the reward as all n-grams become equal, at most 0.
    Raises: ValueError for an ngram_size below 1 or a positive max_penalty.
    Source: arXiv:2502.03373, Appendix C.2.
    """
    if not isinstance(ngram_size, int) or ngram_size < 1 or not max_penalty <= 0:
        raise ValueError(
            f"repetition: ngram_size is {ngram_size!r}, max_penalty is {max_penalty!r}; "
            "a whole number from 1 and a number up to 0 are wanted."
        )
    from trl.rewards import get_repetition_penalty_reward  # here: scoring alone should not import TRL

    return get_repetition_penalty_reward(ngram_size=ngram_size, max_penalty=max_penalty)
