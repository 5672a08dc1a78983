"""The signals of recorded groups for the page: titles, values by completion, scales over all groups."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

WEIGHTS, CREDIT = "token_weights", "credit"

# name -> (title, what a value says)
WORDS = {
    WEIGHTS: ("weight", "what the token's advantage is multiplied by"),
    CREDIT: ("credit", "advantage × weight: above 0 the token was made likelier, below 0 less likely"),
    "visual_dependency": ("visual dependency", "nats; how differently it would have been said without the media"),
    "visual_delta": ("without video", "nats; log-probability with the video minus without"),
    "temporal_delta": ("shuffled frames", "nats; log-probability in order minus shuffled"),
    "entropy": ("entropy", "nats; how unsure the policy was before it said this"),
    "key_tokens": ("key tokens", "1 where the token learns"),
    "attention_shift": ("attention shift", "nats; how far its attention moved since the rollout"),
    "distance_to_teacher": ("look: student to teacher", "nats; how differently the teacher looks here"),
    "divergence_from_teacher": ("words: student to teacher", "nats; how differently the teacher would go on here"),
    "frame_attention": ("attention", "share of the attention on frames"),
    "teacher_attention": ("teacher's attention", "share of the teacher's attention on frames"),
    "selected_frames": ("selected", "frames on which credit is given"),
}

OUTLIERS = 0.05  # share of a signal's values that may lie beyond its scale, which they then saturate


@dataclass(frozen=True)
class Scale:
    """A colour scale over [low, high], centred at 0 if `signed`; `beyond` is whether values lie outside."""

    name: str
    title: str
    says: str
    low: float
    high: float
    signed: bool
    beyond: bool


def words(name: str) -> tuple[str, str]:
    """Return title and meaning of a signal."""
    return WORDS.get(name, (name.replace("_", " "), "a signal of the method"))


def token_signals(completion: dict[str, Any]) -> dict[str, list[float]]:
    """Return values by name of one completion's recorded tokens: weights if the method has any, its signals, credit."""
    count, advantage, weights = len(completion["tokens"]), completion["advantage"], completion["token_weights"]
    found = {} if weights is None else {WEIGHTS: weights}
    for signal in completion["signals"]:
        if signal["kind"] in ("token", "mask"):
            found[signal["name"]] = signal["values"]
    each = [float(trains) for trains in completion["mask"]] if weights is None else weights
    found[CREDIT] = [advantage * weight for weight in each]
    return {name: list(values[:count]) for name, values in found.items()}


def frame_signals(group: dict[str, Any], completion: dict[str, Any] | None) -> dict[str, list[float]]:
    """Return values by name over the frames, of the group or of one completion."""
    signals = group["signals"] if completion is None else completion["signals"]
    return {s["name"]: list(s["values"]) for s in signals if s["kind"] in ("frame", "frame_mask")}


def token_frames(completion: dict[str, Any], frames: int) -> dict[str, dict[int, list[float]]]:
    """Return the values of one completion over the frames, by name and token."""
    return {
        signal["name"]: {
            token: signal["values"][row * frames : (row + 1) * frames] for row, token in enumerate(signal["tokens"])
        }
        for signal in completion["signals"]
        if signal["kind"] == "token_frame"
    }


def main_signal(groups: Sequence[dict[str, Any]]) -> str:
    """Return the main token signal of a method: its weights, else one of its own signals, else credit."""
    completions = [completion for group in groups for completion in group["completions"]]
    names = dict.fromkeys(name for completion in completions for name in token_signals(completion))
    own = [name for name in names if name not in (WEIGHTS, CREDIT, "entropy")]
    return next(name for name in (WEIGHTS, *own, CREDIT) if name in names or name == CREDIT)


def scales(groups: Sequence[dict[str, Any]]) -> list[Scale]:
    """Return one scale per token signal, the same on the whole page; the main one first, then credit."""
    values: dict[str, list[float]] = {}
    for group in groups:
        for completion in group["completions"]:
            for name, of_tokens in token_signals(completion).items():
                values.setdefault(name, []).extend(of_tokens)
    order = dict.fromkeys([main_signal(groups), CREDIT, *values])
    return [_scale(name, values[name]) for name in order if name in values]


def _scale(name: str, values: Iterable[float]) -> Scale:
    ordered = sorted(value for value in values if math.isfinite(value))
    title, says = words(name)
    if not ordered:
        return Scale(name, title, says, 0.0, 1.0, False, False)
    signed = ordered[0] < 0
    sizes = sorted(map(abs, ordered))
    high = sizes[min(len(sizes) - 1, math.ceil((1 - OUTLIERS) * len(sizes)) - 1)] or sizes[-1] or 1.0
    low = -high if signed else min(ordered[0], 1.0) if name == WEIGHTS else 0.0
    return Scale(name, title, says, low, high, signed, sizes[-1] > high)
