"""From a TRL completion to its text, and from the text to the answer."""

from typing import Any

from trl_perception.rewards.reading import closing_brace, inside_command

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"

BOXED = "\\boxed"


def completion_text(completion: str | list[dict[str, Any]]) -> str:
    """The text that the model wrote: the contents of the assistant messages, joined.

    Args: completion: plain text, or messages whose `content` is text, `None` (a bare tool call) or a list of blocks.
        A message without a role counts as the assistant's; what tools and users said is not the model's text.
    Raises: TypeError where the completion is neither text nor a list of messages.
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


def extract_answer(text: str) -> str | None:
    """The stripped content of the one `<answer>...</answer>` pair of a text.

    None where there is no answer to score: no pair, an unclosed tag, several or nested pairs, an empty content.
    Tags are lower case and carry no attributes.
    """
    if text.count(ANSWER_OPEN) != 1 or text.count(ANSWER_CLOSE) != 1:
        return None
    before_close, _, _ = text.partition(ANSWER_CLOSE)
    _, opened, answer = before_close.partition(ANSWER_OPEN)
    return (answer.strip() or None) if opened else None


def extract_boxed(text: str) -> str | None:
    r"""The stripped content of the one `\boxed{...}` that follows the last `</think>`, or stands in a text without one.

    A content that is `\text{...}` (or `\textbf`, `\mathrm` and the like) throughout loses that command. None where there
    is no answer to score: no box, several or nested boxes, a brace that is never closed, an empty content.
    """
    after_thinking = text.rpartition(THINK_CLOSE)[2]
    if after_thinking.count(BOXED) != 1:
        return None
    boxed = after_thinking.partition(BOXED)[2]
    if not boxed.startswith("{"):
        return None
    end = closing_brace(boxed, 1)
    content = "" if end is None else boxed[1:end].strip()
    inner = inside_command(content)
    return (content if inner is None else inner.strip()) or None
