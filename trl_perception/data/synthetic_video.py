"""Families of synthetic clips. Each function draws a clip, asks about it and returns which seconds hold the answer."""

import numpy as np

from .drawing import COLORS, SHAPES, WHITE, canvas, dim_gray, paint, scatter_distractors
from .synthetic_spec import TICK, Question, Sample, SceneSettings, ask, clock, pick, pick_distinct

COLOR_NAMES = tuple(COLORS)
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def scene_color(rng: np.random.Generator, settings: SceneSettings) -> Sample:
    """Full-frame color scenes follow each other: the color of the k-th, or the number of the scene with a color."""
    count = int(rng.integers(settings.scenes[0], settings.scenes[1] + 1))
    bounds = _scene_bounds(rng, settings.ticks, count)
    colors, asked = pick_distinct(rng, COLOR_NAMES, count), int(rng.integers(count))
    frames = _backdrop(rng, settings)
    for color, start, end in zip(colors, bounds[:-1], bounds[1:], strict=True):
        _during(frames, settings, start, end)[:] = COLORS[color]
    scatter_distractors(frames, settings.distractors, rng)

    style = pick(rng, ("multiple choice", "free-form", "numerical"))
    if style == "numerical":
        question = Question(f"Which scene is {colors[asked]}? Answer with its number.", str(asked + 1), style)
    else:
        text = pick(rng, (f"What color is scene {asked + 1}?", f"What is the color of the {ORDINALS[asked]} scene?"))
        question = ask(rng, text, colors[asked], style, COLOR_NAMES)
    noun = pick(rng, ("scene", "number"))
    reasoning = " ".join(f"{noun} {number} {color}" for number, color in enumerate(colors, 1))
    return Sample(question, reasoning, _spans([(bounds[asked], bounds[asked + 1])]), frames=frames)


def event_order(rng: np.random.Generator, settings: SceneSettings) -> Sample:
    """Two shapes appear one after the other: which came first?"""
    frames = _backdrop(rng, settings)
    scatter_distractors(frames, settings.distractors, rng)
    split = int(rng.integers(1, settings.ticks))
    spans = [_span_within(rng, 0, split, longest=2), _span_within(rng, split, settings.ticks, longest=2)]
    colors = pick_distinct(rng, COLOR_NAMES, 2)
    names = [f"{color} {pick(rng, SHAPES)}" for color in colors]
    for name, span in zip(names, spans, strict=True):
        _show(frames, settings, rng, name, span)

    one, other = pick_distinct(rng, names, 2)
    style = pick(rng, ("multiple choice", "free-form"))
    question = ask(rng, f"Which comes first, the {one} or the {other}?", names[0], style, names)
    timed = " ".join(f"at {clock(start)} {name}" for name, (start, _) in zip(names, spans, strict=True))
    reasoning = pick(rng, (timed, f"first {names[0]} then {names[1]}"))
    return Sample(question, reasoning, _spans(spans), frames=frames)


def flash_count(rng: np.random.Generator, settings: SceneSettings) -> Sample:
    """The frame flashes white: how many times? Flashes last one tick and are never adjacent."""
    most = min(4, (settings.ticks + 1) // 2)
    count = int(rng.integers(1, most + 1))
    # Non-adjacent ticks: choose among ticks - (count - 1) places, then insert a gap of one after each flash.
    places = sorted(int(place) for place in rng.permutation(settings.ticks - count + 1)[:count])
    starts = [place + rank for rank, place in enumerate(places)]
    frames = _backdrop(rng, settings)
    scatter_distractors(frames, settings.distractors, rng)
    for start in starts:
        _during(frames, settings, start, start + 1)[:] = WHITE

    text = pick(rng, ("How many white flashes are there?", "How often does the screen flash white?"))
    style = pick(rng, ("multiple choice", "numerical"))
    question = ask(rng, text, str(count), style, [str(number) for number in range(1, 5)])
    times = [clock(start) for start in starts]
    reasoning = pick(rng, ("flash at " + " ".join(times), " ".join(f"flash {rank + 1}" for rank in range(count))))
    return Sample(question, reasoning, _spans([(start, start + 1) for start in starts]), frames=frames)


def event_time(rng: np.random.Generator, settings: SceneSettings) -> Sample:
    """A shape is visible for a while: from when to when? In half of the clips another shape appears as well."""
    frames = _backdrop(rng, settings)
    scatter_distractors(frames, settings.distractors, rng)
    span = _span_within(rng, 0, settings.ticks, longest=max(2, settings.ticks // 2))
    colors = pick_distinct(rng, COLOR_NAMES, 2)
    name = f"{colors[0]} {pick(rng, SHAPES)}"
    free = [(start, end) for start, end in ((0, span[0]), (span[1], settings.ticks)) if end > start]
    if rng.random() < 0.5:
        other = _span_within(rng, *pick(rng, free), longest=2)
        _show(frames, settings, rng, f"{colors[1]} {pick(rng, SHAPES)}", other)
    _show(frames, settings, rng, name, span)

    text = pick(rng, (f"When is the {name} visible?", f"From when to when does the {name} show?"))
    answer = f"{clock(span[0])} to {clock(span[1])}"
    question = Question(f"{text} Answer in seconds.", answer, "temporal grounding")
    reasoning = pick(rng, (f"the {name} from {answer}", f"the {name} starts {clock(span[0])} ends {clock(span[1])}"))
    return Sample(question, reasoning, _spans([span]), frames=frames)


def needle(rng: np.random.Generator, settings: SceneSettings) -> Sample:
    """One tick holds the answer: the color or the form of a shape that appears for a moment."""
    frames = _backdrop(rng, settings)
    scatter_distractors(frames, settings.distractors, rng)
    start = int(rng.integers(settings.ticks))
    color, shape = pick(rng, COLOR_NAMES), pick(rng, SHAPES)
    _show(frames, settings, rng, f"{color} {shape}", (start, start + 1))

    style = pick(rng, ("multiple choice", "free-form"))
    if rng.random() < 0.7:
        text = pick(rng, ("What color shows up for a moment?", "A shape appears briefly. What color is it?"))
        question = ask(rng, text, color, style, COLOR_NAMES)
    else:
        question = ask(rng, "Which shape appears briefly?", shape, style, SHAPES)
    reasoning = pick(rng, (f"at {clock(start)} {color} {shape}", f"briefly a {color} {shape}"))
    return Sample(question, reasoning, _spans([(start, start + 1)]), frames=frames)


def static(rng: np.random.Generator, settings: SceneSettings) -> Sample:
    """Any frame answers: color, form or number of shapes that stay throughout."""
    frames = _backdrop(rng, settings)
    scatter_distractors(frames, settings.distractors, rng)
    question, reasoning, _ = draw_static(rng, frames)
    return Sample(question, reasoning, _spans([(0, settings.ticks)]), frames=frames)


def draw_static(rng: np.random.Generator, frames: np.ndarray) -> tuple[Question, str, list[list[int]]]:
    """Draw one to four equal shapes, one a quadrant, into every frame (F,H,W,3); returns question, trace and boxes."""
    height, width = frames.shape[1:3]
    color, shape = pick(rng, COLOR_NAMES), pick(rng, SHAPES)
    topic = pick(rng, ("color", "color", "shape", "number"))
    count = int(rng.integers(1, 5)) if topic == "number" else 1
    radius = min(height, width) // 5
    centers = [(height * (1 + 2 * row) // 4, width * (1 + 2 * column) // 4) for row in (0, 1) for column in (0, 1)]
    boxes = []
    for center in pick_distinct(rng, centers, count):
        for frame in frames:
            box = paint(frame, shape, color, center, radius)
        boxes.append(box)

    if topic == "number":
        style = pick(rng, ("multiple choice", "numerical"))
        question = ask(rng, f"How many shapes are {color}?", str(count), style, ("1", "2", "3", "4"))
        return question, " ".join(f"number {index} {color} {shape}" for index in range(1, count + 1)), boxes
    style = pick(rng, ("multiple choice", "free-form"))
    if topic == "color":
        question = ask(rng, f"What color is the {shape}?", color, style, COLOR_NAMES)
    else:
        question = ask(rng, f"Which shape is {color}?", shape, style, SHAPES)
    return question, pick(rng, (f"a {color} {shape}", f"a {shape} in {color}")), boxes


def _backdrop(rng: np.random.Generator, settings: SceneSettings) -> np.ndarray:
    """An empty clip (F,H,W,3) in one dim gray."""
    return np.repeat(
        canvas(*settings.resolution, dim_gray(rng))[None], settings.ticks * settings.frames_per_tick, axis=0
    )


def _during(frames: np.ndarray, settings: SceneSettings, start: int, end: int) -> np.ndarray:
    """The frames between two ticks, as a view."""
    return frames[start * settings.frames_per_tick : end * settings.frames_per_tick]


def _show(
    frames: np.ndarray, settings: SceneSettings, rng: np.random.Generator, name: str, span: tuple[int, int]
) -> None:
    """Draw a 'red square' at a random place during a span of ticks."""
    color, shape = name.split()
    height, width = settings.resolution
    radius = int(min(height, width) * rng.uniform(0.2, 0.3))
    center = tuple(int(rng.integers(radius, size - radius)) for size in (height, width))
    for frame in _during(frames, settings, *span):
        paint(frame, shape, color, center, radius)


def _scene_bounds(rng: np.random.Generator, ticks: int, count: int) -> list[int]:
    """Return random bounds of `count` scenes, from 0 to `ticks`; each lasts two ticks or more if possible, else one."""
    shortest = 2 if 2 * count <= ticks else 1
    spare = sorted(int(rng.integers(ticks - shortest * count + 1)) for _ in range(count - 1))
    return [0, *(shortest * number + extra for number, extra in enumerate(spare, 1)), ticks]


def _span_within(rng: np.random.Generator, low: int, high: int, longest: int) -> tuple[int, int]:
    """Return a random span of ticks inside [low, high], at least one tick and at most `longest`."""
    length = int(rng.integers(1, min(longest, high - low) + 1))
    start = int(rng.integers(low, high - length + 1))
    return start, start + length


def _spans(ticks: list[tuple[int, int]]) -> list[list[float]]:
    """Convert spans of ticks to seconds."""
    return [[start * TICK, end * TICK] for start, end in ticks]


VIDEO_FAMILIES = {
    "scene_color": scene_color,
    "event_order": event_order,
    "flash_count": flash_count,
    "event_time": event_time,
    "needle": needle,
    "static": static,
}
