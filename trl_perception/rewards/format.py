"""Format rewards: whether the completion has the tags that the prompt asked for."""

import re
from typing import Any

from trl_perception.rewards.text import ANSWER_CLOSE, ANSWER_OPEN, completion_text, extract_boxed, thinking_tags

# All run only on texts that hold each tag exactly once, so every `.*` has a single place to stop: linear time.
_THINK_ANSWER = r"\s*{}.*{}\s*<answer>.*</answer>\s*"
_THINK = r"\s*{}.*{}.*"
_ANSWER = re.compile(r"\s*<answer>.*</answer>\s*", re.DOTALL)


def format_reward(
    prompts: list,
    completions: list,
    completion_ids: list | None = None,
    *,
    thinking_tag: str = "think",
    **columns: Any,
) -> list[float]:
    """Return 1.0 if the whole completion is `<think>...</think>` then `<answer>...</answer>`, else 0.0.

    Each of the four tags occurs exactly once; white space may surround and separate the two pairs; their contents
    are free and may be empty. Reads no column.

    Args: thinking_tag: name of the tags around the thinking, "reason" for `<reason>...</reason>`.
    Source: arXiv:2503.21776 (Video-R1), format reward. Differs: the release lets the contents hold further tags.
    """
    thinking = thinking_tags(thinking_tag)
    whole = re.compile(_THINK_ANSWER.format(*thinking), re.DOTALL)
    texts = [completion_text(completion) for completion in completions]
    tags = (*thinking, ANSWER_OPEN, ANSWER_CLOSE)
    return [float(_each_once(text, tags) and whole.fullmatch(text) is not None) for text in texts]


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
            not any(tag in text for tag in thinking_tags("think"))
            and _each_once(text, (ANSWER_OPEN, ANSWER_CLOSE))
            and _ANSWER.fullmatch(text) is not None
        )
        for text in texts
    ]


def boxed_format_reward(
    prompts: list,
    completions: list,
    completion_ids: list | None = None,
    *,
    thinking_tag: str = "think",
    **columns: Any,
) -> list[float]:
    r"""Return 1.0 if the whole completion is `<think>...</think>` then a text with one `\boxed{...}`, else 0.0.

    Each think tag occurs exactly once, there is no answer tag, and the box is not empty (see `extract_boxed`); boxes
    inside the thinking are ignored. Reads no column.

    Args: thinking_tag: name of the tags around the thinking.
    Source: arXiv:2604.01840 (PGPO), which asks for think tags and a boxed answer.
    """
    thinking = thinking_tags(thinking_tag)
    whole = re.compile(_THINK.format(*thinking), re.DOTALL)
    texts = [completion_text(completion) for completion in completions]
    return [
        float(
            _each_once(text, thinking)
            and ANSWER_OPEN not in text
            and ANSWER_CLOSE not in text
            and whole.fullmatch(text) is not None
            and extract_boxed(text, thinking_tag) is not None
        )
        for text in texts
    ]


def _each_once(text: str, tags: tuple[str, ...]) -> bool:
    return all(text.count(tag) == 1 for tag in tags)
