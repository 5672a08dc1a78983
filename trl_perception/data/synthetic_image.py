"""Image versions of the clip families: order in time becomes order in space. `event_time` has none."""

import numpy as np

from .drawing import COLORS, SHAPES, WHITE, canvas, dim_gray, paint, scatter_distractors
from .synthetic_spec import Question, Sample, SceneSettings, ask, pick, pick_distinct
from .synthetic_video import COLOR_NAMES, ORDINALS, draw_static


def panel_color(rng: np.random.Generator, settings: SceneSettings) -> Sample:
    """Vertical color panels side by side: the color of the k-th from the left, or the number of the panel."""
    height, width = settings.resolution
    count = int(rng.integers(settings.scenes[0], min(settings.scenes[1], 4) + 1))
    edges = [width * number // count for number in range(count + 1)]
    colors, asked = pick_distinct(rng, COLOR_NAMES, count), int(rng.integers(count))
    image = _backdrop(rng, settings)
    for color, left, right in zip(colors, edges[:-1], edges[1:], strict=True):
        image[:, left:right] = COLORS[color]

    style = pick(rng, ("multiple choice", "free-form", "numerical"))
    if style == "numerical":
        question = Question(f"Which panel is {colors[asked]}? Answer with its number.", str(asked + 1), style)
    else:
        text = pick(rng, (f"What color is panel {asked + 1}?", f"What is the color of the {ORDINALS[asked]} panel?"))
        question = ask(rng, text, colors[asked], style, COLOR_NAMES)
    noun = pick(rng, ("panel", "number"))
    reasoning = " ".join(f"{noun} {number} {color}" for number, color in enumerate(colors, 1))
    return Sample(question, reasoning, evidence_boxes=[[edges[asked], 0, edges[asked + 1], height]], image=image)


def left_of(rng: np.random.Generator, settings: SceneSettings) -> Sample:
    """Two shapes side by side: which is further left?"""
    height, width = settings.resolution
    image, radius = _backdrop(rng, settings), min(height, width) // 5
    names = [f"{color} {pick(rng, SHAPES)}" for color in pick_distinct(rng, COLOR_NAMES, 2)]
    boxes = []
    for name, column in zip(names, (width // 4, width * 3 // 4), strict=True):
        color, shape = name.split()
        boxes.append(paint(image, shape, color, (int(rng.integers(radius, height - radius)), column), radius))

    one, other = pick_distinct(rng, names, 2)
    style = pick(rng, ("multiple choice", "free-form"))
    question = ask(rng, f"Which is further left, the {one} or the {other}?", names[0], style, names)
    return Sample(question, f"left {names[0]} right {names[1]}", evidence_boxes=boxes, image=image)


def dot_count(rng: np.random.Generator, settings: SceneSettings) -> Sample:
    """White dots on a three by three grid: how many?"""
    height, width = settings.resolution
    image, radius = _backdrop(rng, settings), min(height, width) // 9
    cells = pick_distinct(rng, range(9), int(rng.integers(1, 5)))
    boxes = []
    for row, column in (divmod(cell, 3) for cell in sorted(cells)):
        y, x = height * (1 + 2 * row) // 6, width * (1 + 2 * column) // 6
        boxes.append([x - radius, y - radius, x + radius, y + radius])
        image[y - radius : y + radius, x - radius : x + radius] = WHITE

    style = pick(rng, ("multiple choice", "numerical"))
    question = ask(rng, "How many white dots are there?", str(len(cells)), style, ("1", "2", "3", "4"))
    reasoning = " ".join(f"dot {number}" for number in range(1, len(cells) + 1))
    return Sample(question, reasoning, evidence_boxes=boxes, image=image)


def odd_tile(rng: np.random.Generator, settings: SceneSettings) -> Sample:
    """One small tile of a plain image has a color: which?"""
    height, width = settings.resolution
    image, color = _backdrop(rng, settings), pick(rng, COLOR_NAMES)
    row, column = (int(index) for index in rng.integers(4, size=2))
    box = [width * column // 4, height * row // 4, width * (column + 1) // 4, height * (row + 1) // 4]
    image[box[1] : box[3], box[0] : box[2]] = COLORS[color]
    question = ask(
        rng, "What color is the small tile?", color, pick(rng, ("multiple choice", "free-form")), COLOR_NAMES
    )
    reasoning = pick(rng, (f"one {color} tile", f"tile in row {row + 1} is {color}"))
    return Sample(question, reasoning, evidence_boxes=[box], image=image)


def static(rng: np.random.Generator, settings: SceneSettings) -> Sample:
    """Color, form or number of the shapes in the image."""
    image = _backdrop(rng, settings)
    question, reasoning, boxes = draw_static(rng, image[None])
    return Sample(question, reasoning, evidence_boxes=boxes, image=image)


def _backdrop(rng: np.random.Generator, settings: SceneSettings) -> np.ndarray:
    """A dim gray image (H,W,3) with its distractors."""
    image = canvas(*settings.resolution, dim_gray(rng))
    scatter_distractors(image[None], settings.distractors, rng)
    return image


IMAGE_FAMILIES = {
    "scene_color": panel_color,
    "event_order": left_of,
    "flash_count": dot_count,
    "needle": odd_tile,
    "static": static,
}
