"""Extracts the text of a TRL completion, and the answer from the text."""

import re
from typing import Any

from trl_perception.rewards.reading import closing_brace, inside_command

ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

BOXED = "\\boxed"


def completion_text(completion: str | list[dict[str, Any]]) -> str:
    """Return the text that the model wrote: the contents of the assistant messages, joined.

    Args: completion: plain text, or messages whose `content` is text, `None` (a bare tool call) or a list of blocks.
        A message without a role counts as the assistant's; messages of tools and users are ignored.
    Raises: TypeError if the completion is neither text nor a list of messages.
    """
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, list) or not all(isinstance(message, dict) for message in completion):
        raise TypeError(
            f"a completion is text or a list of messages, found {type(completion).__name__}. "
            "Pass the completions as TRL's GRPOTrainer does."
        )
    contents = [message.get("content") for message in completion if message.get("role", "assistant") == "assistant"]
    return "".join(_content_text(content) for content in contents)


def _content_text(content: str | list[dict[str, Any]] | None) -> str:
    if isinstance(content, list):
        return "".join(block.get("text") or "" for block in content)
    return content or ""


def thinking_tags(thinking_tag: str) -> tuple[str, str]:
    """Return the tags around the thinking: "think" -> ("<think>", "</think>").

    Raises: ValueError for a name that is not a word of ASCII letters, digits, `_` or `-`, or that is "answer".
    """
    named = isinstance(thinking_tag, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", thinking_tag)
    if not named or f"<{thinking_tag}>" == ANSWER_OPEN:
        raise ValueError(
            f"thinking_tag is {thinking_tag!r}; set it to the name of the tags around the thinking, such as 'think' or "
            "'reason'."
        )
    return f"<{thinking_tag}>", f"</{thinking_tag}>"


def extract_answer(text: str) -> str | None:
    """Return the stripped content of the single `<answer>...</answer>` pair of a text.

    Returns None for no pair, an unclosed tag, several or nested pairs, or empty content. Tags are lower case and have
    no attributes.
    """
    if text.count(ANSWER_OPEN) != 1 or text.count(ANSWER_CLOSE) != 1:
        return None
    before_close, _, _ = text.partition(ANSWER_CLOSE)
    _, opened, answer = before_close.partition(ANSWER_OPEN)
    return (answer.strip() or None) if opened else None


def extract_boxed(text: str, thinking_tag: str = "think") -> str | None:
    r"""Return the stripped content of the single `\boxed{...}` after the last `</think>`, or in a text without it.

    `thinking_tag` is the name of that tag.

    A `\text{...}` (or `\textbf`, `\mathrm` and the like) around the whole content is removed. Returns None for no box,
    several or nested boxes, an unclosed brace, or empty content.
    """
    after_thinking = text.rpartition(thinking_tags(thinking_tag)[1])[2]
    if after_thinking.count(BOXED) != 1:
        return None
    boxed = after_thinking.partition(BOXED)[2]
    if not boxed.startswith("{"):
        return None
    end = closing_brace(boxed, 1)
    content = "" if end is None else boxed[1:end].strip()
    inner = inside_command(content)
    return (content if inner is None else inner.strip()) or None
