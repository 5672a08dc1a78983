"""What trackers show of where credit went: completions whose tokens are shaded by their weight, with their frames."""

from collections.abc import Sequence
from html import escape
from importlib import import_module
from typing import Any, NamedTuple

from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.integrations import TensorBoardCallback

from ...batch import Group

# Groups of a logged rollout that are shown; TRL's completions table has them all.
GROUPS_SHOWN = 4
# A pair that stays apart for colour-blind readers (Okabe and Ito), as R,G,B.
MORE, LESS = "0,114,178", "230,159,0"
STRONGEST = 0.6  # opacity that keeps black text readable
PAGE_STYLE = "background:#fff;color:#111;font:14px/1.6 sans-serif;padding:12px"


class Credited(NamedTuple):
    """A group, and the weights (G,T) of its tokens; None where a method gives none."""

    group: Group
    weights: Tensor | None


def shaded(tokens: Sequence[str], weights: Sequence[float], largest: float) -> str:
    """Tokens as HTML, darker the further their weight is from 1, the weight of every token in GRPO.

    opacity = 0.6 (w - 1) / (largest - 1) in blue above 1, 0.6 (1 - w) in orange below

    Args:
        tokens: T strings, of any content.
        weights: T numbers >= 0.
        largest: the weight that is darkest, of all the completions that are looked at together.
    """
    spans = []
    for token, weight in zip(tokens, weights, strict=True):
        colour = MORE if weight > 1 else LESS
        opacity = STRONGEST * ((weight - 1) / (largest - 1) if weight > 1 else 1 - weight)
        spans.append(
            f'<span style="background:rgba({colour},{opacity:.2f})" title="{weight:.3f}">{escape(token)}</span>'
        )
    return "".join(spans)


def weights_page(shown: Sequence[Credited], tokenizer: PreTrainedTokenizerBase, step: int) -> str:
    """A rollout's groups as one piece of HTML without scripts: rewards, advantage, and each completion shaded."""
    weighted = [credited for credited in shown if credited.weights is not None]
    largest = max((weight for credited in weighted for _, values in _rows(*credited) for weight in values), default=1.0)
    legend = shaded(["no credit", "as in GRPO", f"most ({largest:.2f})"], [0.0, 1.0, largest], max(largest, 1.0))
    parts = [f"<h3>Token weights at step {step}</h3><p>{legend}</p>"]
    for group, weights in weighted:
        names = ["advantage", *group.rewards]
        head = "".join(f"<th>{escape(name)}</th>" for name in [*names, "completion"])
        parts.append(f"<h4>{escape(prompt_text(group.prompt.logged))}</h4><table><tr>{head}</tr>")
        for row, (ids, values) in enumerate(_rows(group, weights)):
            numbers = (float(column[row]) for column in (group.advantages, *group.rewards.values()))
            tokens = shaded([tokenizer.decode([token]) for token in ids], values, largest)
            cells = "".join(f"<td>{number:.3f}</td>" for number in numbers)
            parts.append(f'<tr>{cells}<td style="white-space:pre-wrap">{tokens}</td></tr>')
        parts.append("</table>")
    return f'<div style="{PAGE_STYLE}">{"".join(parts)}</div>'


def weights_markdown(credited: Credited, tokenizer: PreTrainedTokenizerBase) -> str:
    """A group as a Markdown table, for TensorBoard, which takes no colours: every weight other than 1 follows its token."""
    group, weights = credited
    names = ["advantage", *group.rewards, "completion"]
    lines = [prompt_text(group.prompt.logged), "", f"|{'|'.join(names)}|", f"|{'---|' * len(names)}"]
    for row, (ids, values) in enumerate(_rows(group, weights)):
        words = [_in_cell(tokenizer.decode([token])) for token in ids]
        if weights is not None:
            words = [f"{word}*{value:.2f}*" if value != 1 else word for word, value in zip(words, values, strict=True)]
        numbers = (float(column[row]) for column in (group.advantages, *group.rewards.values()))
        lines.append(f"|{'|'.join(f'{number:.3f}' for number in numbers)}|{''.join(words)}|")
    return "\n".join(lines)


def track(
    shown: Sequence[Credited],
    tokenizer: PreTrainedTokenizerBase,
    *,
    report_to: Sequence[str],
    callbacks: Sequence[TrainerCallback],
    frames: bool,
    step: int,
) -> None:
    """Hand the groups to the trackers of a run: HTML to wandb and trackio, text and pictures to TensorBoard.

    TRL gives wandb and trackio a table of completions and frames, TensorBoard neither.

    Args:
        report_to: the trackers. callbacks: the trainer's; the one of TensorBoard holds its writer.
        frames: whether frames are shown.
    """
    if any(credited.weights is not None for credited in shown):
        page = weights_page(shown, tokenizer, step)
        for name in ("wandb", "trackio"):
            if name in report_to:
                tracker = import_module(name)
                tracker.log({"token_weights": tracker.Html(page)})
    for writer in (callback.tb_writer for callback in callbacks if isinstance(callback, TensorBoardCallback)):
        if writer is None:
            continue
        for number, credited in enumerate(shown):
            writer.add_text(f"completions/{number}", weights_markdown(credited, tokenizer), step)
            for video, pictures in enumerate(credited.group.prompt.frames if frames else ()):
                writer.add_images(f"frames/{number}.{video}", pictures, step)


def in_words(prompt: Any) -> Any:
    """A prompt whose messages hold one string each, a medium being its kind in brackets."""
    if isinstance(prompt, str):
        return prompt
    return [{**message, "content": _words(message["content"])} for message in prompt]


def prompt_text(prompt: Any) -> str:
    """The words of a prompt in one string."""
    return prompt if isinstance(prompt, str) else " ".join(message["content"] for message in in_words(prompt))


def _words(content: Any) -> str:
    if isinstance(content, str):
        return content
    return " ".join(block["text"] if block["type"] == "text" else f"[{block['type']}]" for block in content or ())


def _rows(group: Group, weights: Tensor | None) -> list[tuple[list[int], list[float]]]:
    """Ids and weights of each completion's own tokens, without padding."""
    weights = group.completion_mask.float() if weights is None else weights
    own = group.attention_mask.bool()
    return [
        (ids[mask].tolist(), values[mask].tolist())
        for ids, values, mask in zip(group.completion_ids, weights, own, strict=True)
    ]


def _in_cell(text: str) -> str:
    """Text that stays in its cell of a Markdown table and means nothing there."""
    return text.translate({ord(sign): f"&#{ord(sign)};" for sign in "&\\`*_|<>[]#~"}).replace("\n", " ")
