"""Prepares a recorded group for the page: text for the template, numbers for the script."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .charts import number
from .signals import frame_signals, token_frames, token_signals, words
from .stills import Picture, Stills, worth_showing
from .summary import evidence_frames


@dataclass(frozen=True)
class Cell:
    """A frame of the strip; a slim one has no picture. `marks` are the titles of frame masks that include it."""

    title: str
    label: str
    picture: Picture | None
    evidence: bool
    marks: list[str]
    slim: bool


@dataclass(frozen=True)
class Answer:
    """A completion: advantage, its words and share of the widest bar (0 to 50), rewards, tokens and whether they train."""

    advantage: float
    signed: str
    reach: str
    rewards: list[tuple[str, str]]
    tokens: list[tuple[str, bool]]
    more: int


@dataclass(frozen=True)
class GroupView:
    """A group. `numbers` are signals by name: `tokens` and `frames` with a list a completion, `token_frames`, `rewards`."""

    step: int
    sample: str
    problem_type: str | None
    prompt: str
    solution: str | None
    cells: list[Cell]
    problems: list[str]
    answers: list[Answer]
    numbers: dict[str, Any]


def view_of(group: dict[str, Any], stills: Stills, reach: float) -> GroupView:
    """Make the view of a row of [`trl_perception.reports.rollouts.SCHEMA`].

    Args: reach: the largest |advantage| on the page.
    """
    completions, count = group["completions"], len(group["frames"])
    frames = {name: [values] * len(completions) for name, values in _of_group(group, masks=False).items()}
    for number_, completion in enumerate(completions):
        for name, values in frame_signals(group, completion).items():
            frames.setdefault(name, [None] * len(completions))[number_] = _short(values)
    tokens: dict[str, list] = {}
    for number_, completion in enumerate(completions):
        for name, values in token_signals(completion).items():
            tokens.setdefault(name, [None] * len(completions))[number_] = _short(values)
    looks = [token_frames(completion, count) for completion in completions]
    by_token = {
        name: [{str(token): _short(row) for token, row in look.get(name, {}).items()} for look in looks]
        for name in dict.fromkeys(name for look in looks for name in look)
    }
    cells, problems = _cells(group, stills, frames)
    return GroupView(
        step=group["step"],
        sample=group["sample"],
        problem_type=group["problem_type"],
        prompt=group["prompt"],
        solution=group["solution"],
        cells=cells,
        problems=problems,
        answers=[_answer(completion, group["reward_names"], reach) for completion in completions],
        numbers={
            "tokens": tokens,
            "frames": frames,
            "token_frames": by_token,
            "rewards": _short(completion["reward"] for completion in completions),
        },
    )


def _of_group(group: dict[str, Any], *, masks: bool) -> dict[str, list]:
    kind = "frame_mask" if masks else "frame"
    return {signal["name"]: _short(signal["values"]) for signal in group["signals"] if signal["kind"] == kind}


def _cells(group: dict[str, Any], stills: Stills, frames: dict[str, list]) -> tuple[list[Cell], list[str]]:
    count, evidence, masks = len(group["frames"]), evidence_frames(group), _of_group(group, masks=True)
    marks = [[words(name)[0] for name, values in masks.items() if values[index]] for index in range(count)]
    known = [values for values in next(iter(frames.values()), []) if values]
    scores = [sum(values[index] or 0.0 for values in known) for index in range(count)]
    shown = worth_showing(scores, [evidence[index] or bool(marks[index]) for index in range(count)])
    pictures, problems = stills.of(group, shown)
    several = len(group["media"]) > 1
    cells = []
    for index, frame in enumerate(group["frames"]):
        medium, times = group["media"][frame["medium"]], frame["times"]
        name = os.path.basename(medium["name"])
        when = f"{number(times[0])} s" if times else "image"
        span = f"{number(times[0])} to {number(times[-1])} s" if len(times) > 1 else when
        cells.append(
            Cell(
                title=f"{name}, {span}" if several else span,
                label=f"{frame['medium'] + 1}: {when}" if several else when,
                picture=pictures.get(index),
                evidence=evidence[index],
                marks=marks[index],
                slim=index not in shown,
            )
        )
    return cells, problems


def _answer(completion: dict[str, Any], names: list[str], reach: float) -> Answer:
    advantage = completion["advantage"]
    rewards = [
        (name.removesuffix("_reward").replace("_", " "), "–" if value is None else number(value))
        for name, value in zip(names, completion["rewards"], strict=True)
    ]
    return Answer(
        advantage=advantage,
        signed=f"{advantage:+.2f}".replace("-", "−") if round(advantage, 2) else "0",
        reach=f"{50 * abs(advantage) / reach:.1f}" if reach else "0",
        rewards=rewards,
        tokens=list(zip(completion["tokens"], completion["mask"], strict=True)),
        more=completion["length"] - len(completion["tokens"]),
    )


def _short(values: Iterable[float]) -> list[float | None]:
    """Round numbers to four digits for JSON; None for non-finite values."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]
