"""Boxes in an image: parsing a box from text, and the IoU of two boxes."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trl_perception.rewards.reading import undress
from trl_perception.rewards.structured import read_structure

BOX_GROUNDING = ("box grounding", "spatial grounding")  # two names of one problem type

Box = tuple[float, float, float, float]

# Applied to text with single spaces. Every repetition is bounded, so a long text costs linear time.
_NUMBER = r"([0-9]{1,7}(?:\.[0-9]{1,20})?)"
_FLAT = rf"{_NUMBER} ?, ?{_NUMBER} ?, ?{_NUMBER} ?, ?{_NUMBER}"
_CORNERS = rf"[\[(] ?{_NUMBER} ?, ?{_NUMBER} ?[\])] ?,? ?[\[(] ?{_NUMBER} ?, ?{_NUMBER} ?[\])]"
_BOX = re.compile(rf"(?<![\w.,+-])(?:{_CORNERS}|{_FLAT})(?![\w%]|[.,] ?[0-9])")
_MAX_SIDE = 1e100  # prevents overflow of areas
_KEY = "bbox_2d"  # the key under which Qwen2.5-VL writes boxes

_SPACED = re.compile(rf"(?<![\w.,+-])[\[(]* ?{_NUMBER}" + rf" ?[,; ] ?{_NUMBER}" * 3 + r" ?[\])]*")
_LABELS = re.compile(
    r"\b(?:[xy][ _]?(?:[0-2]|min|max)|(?:(?:top|upper|bottom|lower)[ _-]?)?(?:left|right)|top|bottom)(?=\W)[\"']? ?[:=]? ?",
    re.IGNORECASE,
)
_PIXELS = re.compile(r"(?<=[0-9]) ?(?:px|pixels?)\b", re.IGNORECASE)
_BETWEEN_CORNERS = re.compile(r"(?<=[0-9]) ?([\])]),? ?(?:to|and|-|–|->|→) ?(?=[\[(])", re.IGNORECASE)
_BOX_TAGS = [("<|box_start|>", "<|box_end|>"), ("<box>", "</box>"), ("<bbox>", "</bbox>")]
_REFERRED = re.compile(r"<\|object_ref_start\|>.{0,200}?<\|object_ref_end\|>|<ref>.{0,200}?</ref>", re.DOTALL)
_CORNER_KEYS = [("x1", "y1", "x2", "y2"), ("x0", "y0", "x1", "y1"), ("left", "top", "right", "bottom")]
_CORNER_KEYS += [("xmin", "ymin", "xmax", "ymax")]
_SIDE_KEYS = [("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height")]
_POINT_KEYS = ("topleft", "bottomright")
_Y_FIRST = "box2d"  # without its sign, the key under which Gemini writes y before x


def parse_box(text: str) -> Box | None:
    """Parse the single box (x0, y0, x1, y1) in a text: "[10, 20, 30, 40]", "10, 20, 30, 40", "(10,20),(30,40)",
    '{"bbox_2d": [10, 20, 30, 40]}'.

    Words around it are ignored. Returns None if there is no box, more than one, another number, a negative or huge
    number (8 digits), or a box without area: x0 < x1 and y0 < y1 are required.
    """
    text = " ".join(text.replace(_KEY, " ").split())
    found = _BOX.search(text)
    if not found or any(char.isdigit() for char in text[: found.start()] + text[found.end() :]):
        return None
    x0, y0, x1, y1 = (float(number) for number in found.groups() if number)
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def box_of(value: Any) -> Box | None:
    """Return the single box in a text, a list or a mapping, in the forms of `parse_box` and those that models write.

    JSON and Python literals: four numbers, two corners, `bbox_2d` or another key over them, or the sides by name (x1, y1,
    x2, y2; xmin, ..; left, top, right, bottom; x, y, width, height). Other keys, such as labels, are ignored. Text:
    "10 20 30 40", "x1=10, y1=20, x2=30, y2=40", `<box>..</box>`, `<|box_start|>..<|box_end|>`. Returns None for no box
    or several.
    """
    if isinstance(value, str):
        text = undress(value)
        structure = read_structure(text)
        return _box_of_text(text) if structure is None else box_of(structure)
    found = list(dict.fromkeys(_boxes_within(value)))
    return found[0] if len(found) == 1 else None


def _box_of_text(text: str) -> Box | None:
    text = _REFERRED.sub(" ", text)
    for opening, closing in _BOX_TAGS:
        if text.count(opening) == text.count(closing) == 1:
            text = text.partition(opening)[2].partition(closing)[0]
    text = " ".join(_PIXELS.sub("", _LABELS.sub("", text)).split())
    text = _BETWEEN_CORNERS.sub(r"\1, ", text)
    if spaced := _SPACED.fullmatch(text):
        return _forward(spaced.groups())
    return parse_box(text)


def _boxes_within(value: Any) -> Iterator[Box | None]:
    """Yield every box of a structure; None for a value that has the form of a box but is invalid."""
    if isinstance(value, str):
        if box := _box_of_text(value):
            yield box
    elif isinstance(value, Mapping):
        keys = {re.sub(r"[ _-]", "", str(key).lower()): item for key, item in value.items()}
        if all(name in keys for name in _POINT_KEYS):
            yield from _boxes_within([[keys[name] for name in _POINT_KEYS]])
            return
        for names in (*_CORNER_KEYS, *_SIDE_KEYS):
            if all(name in keys for name in names):
                sides = [keys[name] for name in names]
                yield _forward(sides) if names in _CORNER_KEYS else _forward(sides, extent=True)
                return
        boxes = [item for key, item in keys.items() if isinstance(item, list | tuple | dict) or "box" in key]
        for item in boxes if _Y_FIRST not in keys else [None]:
            yield from _boxes_within(item)
    elif isinstance(value, list | tuple):
        corners = len(value) == 2 and all(isinstance(item, list | tuple) and len(item) == 2 for item in value)
        flat = [side for item in value for side in item] if corners else value
        if len(flat) == 4 and not any(isinstance(side, list | tuple | Mapping) for side in flat):
            yield _forward(flat)
        else:
            for item in value:
                if isinstance(item, list | tuple | Mapping):
                    yield from _boxes_within(item)
                else:
                    yield None
    else:
        yield None


def _forward(sides: Sequence[Any], extent: bool = False) -> Box | None:
    """Return (x0, y0, x1, y1) from four numbers or texts, or from x, y, width and height; None for an invalid box."""
    texts = [str(side).strip() for side in sides]
    if len(texts) != 4 or not all(re.fullmatch(_NUMBER, text) for text in texts):
        return None
    x0, y0, x1, y1 = map(float, texts)
    if extent:
        x1, y1 = x0 + x1, y0 + y1
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def box_iou(predicted: Sequence[float], target: Sequence[float]) -> float:
    """Intersection over union of two boxes: |P and T| / |P or T|.

    Args: predicted, target: (x0, y0, x1, y1) in one unit, pixels or shares of the image.
    Returns: a float in [0, 1]; 0.0 if both have no area.
    Raises: ValueError if a box is not four numbers up to 1e100 with x0 <= x1 and y0 <= y1.
    """
    for box in (predicted, target):
        if len(box) != 4 or not all(abs(side) <= _MAX_SIDE for side in box) or box[0] > box[2] or box[1] > box[3]:
            raise ValueError(f"a box is [x0, y0, x1, y1], up to 1e100, with x0 <= x1 and y0 <= y1; found {box!r}.")
    width = max(0.0, min(predicted[2], target[2]) - max(predicted[0], target[0]))
    height = max(0.0, min(predicted[3], target[3]) - max(predicted[1], target[1]))
    shared = width * height
    union = _area(predicted) + _area(target) - shared
    return min(1.0, shared / union) if union > 0 else 0.0


def _area(box: Sequence[float]) -> float:
    return float(box[2] - box[0]) * float(box[3] - box[1])
