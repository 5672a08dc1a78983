"""Format rewards: whether the completion has the tags that the prompt asked for."""

import re
from typing import Any

from trl_perception.rewards.text import (
    ANSWER_CLOSE,
    ANSWER_OPEN,
    THINK_CLOSE,
    THINK_OPEN,
    completion_text,
    extract_boxed,
)

# All run only on texts that hold each tag exactly once, so every `.*` has a single place to stop: linear time.
_THINK_ANSWER = re.compile(r"\s*<think>.*</think>\s*<answer>.*</answer>\s*", re.DOTALL)
_THINK = re.compile(r"\s*<think>.*</think>.*", re.DOTALL)
_ANSWER = re.compile(r"\s*<answer>.*</answer>\s*", re.DOTALL)


def format_reward(prompts: list, completions: list, completion_ids: list | None = None, **columns: Any) -> list[float]:
    """Return 1.0 if the whole completion is `<think>...</think>` then `<answer>...</answer>`, else 0.0.

    Each of the four tags occurs exactly once; white space may surround and separate the two pairs; their contents
    are free and may be empty. Reads no column.

    Source: arXiv:2503.21776 (Video-R1), format reward. Differs: the release lets the contents hold further tags.
    """
    tags = (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)
    texts = [completion_text(completion) for completion in completions]
    return [float(_each_once(text, tags) and _THINK_ANSWER.fullmatch(text) is not None) for text in texts]


def answer_format_reward(
    prompts: list, completions: list, completion_ids: list | None = None, **columns: Any
) -> list[float]:
    """Return 1.0 if the whole completion is one `<answer>...</answer>`, without any think tag, else 0.0.

    Reads no column.

    Source: RAL-zero, which asks for the answer alone.
    """
    texts = [completion_text(completion) for completion in completions]
    return [
        float(
            THINK_OPEN not in text
            and THINK_CLOSE not in text
            and _each_once(text, (ANSWER_OPEN, ANSWER_CLOSE))
            and _ANSWER.fullmatch(text) is not None
        )
        for text in texts
    ]


def boxed_format_reward(
    prompts: list, completions: list, completion_ids: list | None = None, **columns: Any
) -> list[float]:
    r"""Return 1.0 if the whole completion is `<think>...</think>` then a text with one `\boxed{...}`, else 0.0.

    Each think tag occurs exactly once, there is no answer tag, and the box is not empty (see `extract_boxed`); boxes
    inside the thinking are ignored. Reads no column.

    Source: arXiv:2604.01840 (PGPO), which asks for think tags and a boxed answer.
    """
    texts = [completion_text(completion) for completion in completions]
    return [
        float(
            _each_once(text, (THINK_OPEN, THINK_CLOSE))
            and ANSWER_OPEN not in text
            and ANSWER_CLOSE not in text
            and _THINK.fullmatch(text) is not None
            and extract_boxed(text) is not None
        )
        for text in texts
    ]


def _each_once(text: str, tags: tuple[str, ...]) -> bool:
    return all(text.count(tag) == 1 for tag in tags)
