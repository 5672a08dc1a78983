"""Statistics over recorded groups: the tokens with the largest weights, and the attention to evidence."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .run import Points
from .signals import CREDIT, frame_signals, main_signal, token_signals, words

LEAST_COUNT = 5  # times that a token must occur for its mean to be shown


@dataclass(frozen=True)
class TokenMeans:
    """Mean of a signal by token: (token, mean, count), the largest and the smallest means."""

    title: str
    says: str
    highest: list[tuple[str, float, int]]
    lowest: list[tuple[str, float, int]]


def token_means(groups: Sequence[dict[str, Any]], each: int = 8) -> TokenMeans | None:
    """Return means of the main signal by frequent token; None without frequent tokens or signals other than credit."""
    name = main_signal(groups)
    if name == CREDIT:
        return None
    found: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        for completion in group["completions"]:
            values = token_signals(completion).get(name, ())
            for token, value, kept in zip(completion["tokens"], values, completion["mask"], strict=False):
                if kept and value == value:
                    found[token].append(value)
    means = [(token, sum(v) / len(v), len(v)) for token, v in found.items() if len(v) >= LEAST_COUNT]
    if not means:
        return None
    means.sort(key=lambda entry: -entry[1])
    each = min(each, len(means) // 2 or 1)
    return TokenMeans(*words(name), means[:each], means[each:][-each:])


def shown_at(evidence: Sequence[Sequence[float]], times: Sequence[float]) -> bool:
    """Whether any of a cell's raw frames lies in a span [start, end)."""
    return any(start <= time < end for start, end in evidence for time in times)


def evidence_frames(group: dict[str, Any]) -> list[bool]:
    """Return, for each frame, whether it shows evidence; requires spans and a prompt with one video."""
    videos = [medium for medium in group["media"] if medium["kind"] == "video"]
    spans = group["evidence"] if group["evidence"] and len(videos) == 1 else []
    return [shown_at(spans, frame["times"]) for frame in group["frames"]]


def evidence_attention(groups: Sequence[dict[str, Any]]) -> tuple[Points, Points]:
    """Return by step the share of frame attention that falls on evidence, and the share of frames that are evidence.

    Averages over completions of groups whose evidence is a part of the clip.
    """
    shares: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for group in groups:
        marked = evidence_frames(group)
        if not any(marked) or all(marked):
            continue
        for completion in group["completions"]:
            attention = frame_signals(group, completion).get("frame_attention")
            if attention and sum(attention) > 0:
                on = sum(value for value, here in zip(attention, marked, strict=True) if here)
                shares[group["step"]].append((on / sum(attention), sum(marked) / len(marked)))
    steps = sorted(shares)
    means = [[sum(column) / len(column) for column in zip(*shares[step], strict=True)] for step in steps]
    return (
        [(s, m[0]) for s, m in zip(steps, means, strict=True)],
        [(s, m[1]) for s, m in zip(steps, means, strict=True)],
    )
