"""The settings and the samples of a synthetic dataset."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

TICK = 0.5
"""Seconds; every event starts and ends on a multiple of it."""

LETTERS = "ABCD"


@dataclass(frozen=True)
class SceneSettings:
    """The appearance of clips and images. A clip has `ticks` half-second steps of `frames_per_tick` frames."""

    scenes: tuple[int, int] = (2, 3)
    seconds: float = 4.0
    fps: int = 4
    resolution: tuple[int, int] = (56, 56)
    distractors: int = 1
    noise: float = 4.0
    tint: float = 0.0

    def __post_init__(self) -> None:
        if self.fps < 2 or self.fps % 2:
            raise ValueError(f"fps is {self.fps}; give an even number, so that half-second events end between frames")
        if self.seconds < 2 or self.seconds % TICK:
            raise ValueError(f"seconds is {self.seconds}; give a multiple of {TICK}, 2 at least")
        if min(self.resolution) < 28 or self.resolution[0] % 2 or self.resolution[1] % 2:
            raise ValueError(f"resolution is {self.resolution}; give an even (height, width), 28 pixels at least")
        low, high = self.scenes
        if not 2 <= low <= high <= min(self.ticks, 8):
            raise ValueError(
                f"scenes is {self.scenes}; give (fewest, most) with 2 <= fewest <= most <= {min(self.ticks, 8)}: "
                f"a scene lasts {TICK} s at least and the colors of a clip differ"
            )
        for name in ("distractors", "noise", "tint"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more")

    @property
    def ticks(self) -> int:
        return int(self.seconds / TICK)

    @property
    def frames_per_tick(self) -> int:
        return self.fps // 2


@dataclass
class Question:
    """A question and its answer: for multiple choice `solution` is a letter and `options` are strings like 'A. red'."""

    text: str
    solution: str
    problem_type: str
    options: list[str] = field(default_factory=list)


@dataclass
class Sample:
    """One row before it is written. frames (F,H,W,3) uint8 for a clip, image (H,W,3) uint8, both None without media."""

    question: Question
    reasoning: str
    evidence: list[list[float]] = field(default_factory=list)
    evidence_boxes: list[list[int]] = field(default_factory=list)
    frames: np.ndarray | None = None
    image: np.ndarray | None = None


def pick(rng: np.random.Generator, choices: Sequence):
    """Return one of the choices, as the original Python object."""
    return choices[int(rng.integers(len(choices)))]


def pick_distinct(rng: np.random.Generator, choices: Sequence, count: int) -> list:
    """Return `count` different choices, in random order."""
    return [choices[int(i)] for i in rng.permutation(len(choices))[:count]]


def ask(rng: np.random.Generator, text: str, answer: str, style: str, wrong: Sequence[str] = ()) -> Question:
    """Make a question in a style; 'multiple choice' adds up to three wrong answers, in random order."""
    if style != "multiple choice":
        return Question(text, answer, style)
    others = pick_distinct(rng, [choice for choice in wrong if choice != answer], len(LETTERS) - 1)
    offered = pick_distinct(rng, [answer, *others], len(others) + 1)
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, offered, strict=False)]
    return Question(f"{text}\n" + "\n".join(options), LETTERS[offered.index(answer)], style, options)


def clock(tick: int) -> str:
    """Format a tick as seconds with one decimal, '2.5' for tick 5."""
    return f"{tick * TICK:.1f}"
