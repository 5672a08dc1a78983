"""Renders completions with tokens shaded by weight: HTML and Markdown for trackers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

# Two colours that colour-blind readers can distinguish (Okabe and Ito), as R,G,B.
MORE, LESS = "0,114,178", "230,159,0"
STRONGEST = 0.6  # opacity that keeps black text readable
PAGE_STYLE = "background:#fff;color:#111;font:14px/1.6 sans-serif;padding:12px"


@dataclass(frozen=True)
class WeightedGroup:
    """The G completions of a prompt, without padding.

    Args:
        prompt: its text.
        numbers: {name: G numbers}, such as the advantage and the rewards.
        tokens: G lists of strings.
        weights: G lists of numbers >= 0, one for each token; empty if the method has none.
    """

    prompt: str
    numbers: Mapping[str, Sequence[float]]
    tokens: Sequence[Sequence[str]]
    weights: Sequence[Sequence[float]] = ()


def shaded(tokens: Sequence[str], weights: Sequence[float], largest: float) -> str:
    """Render tokens as HTML, darker the further their weight is from 1, the weight of every token in GRPO.

    opacity = 0.6 (w - 1) / (largest - 1) in blue above 1, 0.6 (1 - w) in orange below

    Args:
        tokens: T strings, of any content.
        weights: T numbers >= 0.
        largest: the darkest weight, the maximum over all completions shown together.
    """
    spans = []
    for token, weight in zip(tokens, weights, strict=True):
        colour = MORE if weight > 1 else LESS
        opacity = STRONGEST * ((weight - 1) / (largest - 1) if weight > 1 else 1 - weight)
        spans.append(
            f'<span style="background:rgba({colour},{opacity:.2f})" title="{weight:.3f}">{escape(token)}</span>'
        )
    return "".join(spans)


def weights_page(groups: Sequence[WeightedGroup], step: int) -> str:
    """Render a rollout's groups as HTML without scripts: the numbers, and each completion shaded."""
    largest = max((weight for group in groups for weights in group.weights for weight in weights), default=1.0)
    legend = shaded(["no credit", "as in GRPO", f"most ({largest:.2f})"], [0.0, 1.0, largest], max(largest, 1.0))
    parts = [f"<h3>Token weights at step {step}</h3><p>{legend}</p>"]
    for group in groups:
        if not group.weights:
            continue
        head = "".join(f"<th>{escape(name)}</th>" for name in [*group.numbers, "completion"])
        parts.append(f"<h4>{escape(group.prompt)}</h4><table><tr>{head}</tr>")
        for *numbers, tokens, weights in zip(*group.numbers.values(), group.tokens, group.weights, strict=True):
            cells = "".join(f"<td>{number:.3f}</td>" for number in numbers)
            text = shaded(tokens, weights, largest)
            parts.append(f'<tr>{cells}<td style="white-space:pre-wrap">{text}</td></tr>')
        parts.append("</table>")
    return f'<div style="{PAGE_STYLE}">{"".join(parts)}</div>'


def weights_markdown(group: WeightedGroup) -> str:
    """Render a group as a Markdown table for TensorBoard, without colours: a weight other than 1 follows its token."""
    names = [*group.numbers, "completion"]
    lines = [group.prompt, "", f"|{'|'.join(names)}|", f"|{'---|' * len(names)}"]
    all_weights = group.weights or [[1.0] * len(tokens) for tokens in group.tokens]
    for *numbers, tokens, weights in zip(*group.numbers.values(), group.tokens, all_weights, strict=True):
        words = [
            _in_cell(token) + (f"*{weight:.2f}*" if weight != 1 else "")
            for token, weight in zip(tokens, weights, strict=True)
        ]
        lines.append(f"|{'|'.join(f'{number:.3f}' for number in numbers)}|{''.join(words)}|")
    return "\n".join(lines)


def _in_cell(text: str) -> str:
    """Escape text for a cell of a Markdown table."""
    return text.translate({ord(sign): f"&#{ord(sign)};" for sign in "&\\`*_|<>[]#~"}).replace("\n", " ")


def in_words(prompt: Any) -> Any:
    """Convert each message of a prompt to one string, with media as their kind in brackets."""
    if isinstance(prompt, str):
        return prompt
    return [{**message, "content": _words(message["content"])} for message in prompt]


def prompt_text(prompt: Any) -> str:
    """Return the text of a prompt as one string."""
    return prompt if isinstance(prompt, str) else " ".join(message["content"] for message in in_words(prompt))


def _words(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(block["text"] if block["type"] == "text" else f"[{block['type']}]" for block in content or ())
