"""Time spans: parsing them from text, and their temporal IoU."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trl_perception.rewards.reading import undress
from trl_perception.rewards.structured import read_structure

TEMPORAL_GROUNDING = "temporal grounding"

Span = tuple[float, float]

# Applied to text with single spaces. Every repetition is bounded, so a long text costs linear time.
_TIME = r"(?:(?:[0-9]{1,3}:[0-5]?[0-9]|[0-9]{1,3}):[0-5]?[0-9]|[0-9]{1,7})(?:\.[0-9]{1,20})?"
_UNIT = r"(?: ?s(?:ec(?:ond)?s?)?)?"
# Outside brackets a comma separates only before a space: "1,234" is one number.
_SEPARATOR = r" ?(?:to|until|[-–—~]|(?(1),|,(?= ))) ?"
_SPAN = re.compile(rf"([\[(] ?)?(?<![\w.:-])({_TIME}){_UNIT}{_SEPARATOR}({_TIME}){_UNIT}(?![\w%]|[.:][0-9])")
# Not allowed beside the spans: other numbers, and units other than seconds.
_FOREIGN = re.compile(r"\d|%|\b(?:ms|m|mins?|minutes?|h|hrs?|hours?|frames?)\b")

# Forms that models write besides: a time with its units ("1 min 5 s", "0m12s", "12.0 seconds", "1分5秒"), or a clock time.
_AMOUNT = r"[0-9]{1,7}(?:\.[0-9]{1,20})?"
_SECONDS = r"(?:s|secs?|seconds?(?: marks?)?|segundos?|secondes?|sekunden?|секунд[аы]?)(?![a-zа-я])(?:\.(?![0-9]))?"
_SYLLABLES = re.compile(r"秒钟?|초")  # seconds, whatever letters follow
_AROUND_ONE = re.compile(rf"[\[(] ?({_TIME}{_UNIT}) ?[\])]")  # brackets
_ABOUT = re.compile(r"(^|\bto |\band |[-–—] )[~〜～≈](?= ?[0-9])")
_WORDED = (
    rf"(?:({_AMOUNT}) ?(?:h|hrs?|hours?|小时|時間)(?![a-z]) ?(?:and |, ?)?)?"
    rf"(?:({_AMOUNT}) ?(?:m|mins?|minutes?|分钟?|分)(?![a-z]) ?(?:and |, ?)?)?"
    rf"(?:({_AMOUNT}) ?{_SECONDS})?"
)
_CLOCK = r"[0-9]{1,3}:[0-5]?[0-9]:[0-5]?[0-9](?:[.,][0-9]{1,20})?|[0-9]{1,3}:[0-5]?[0-9](?:\.[0-9]{1,20})?"
_ANY_TIME = re.compile(rf"(?<![\w.:])(?<!\W-)(?<!^-)(?:({_CLOCK})|{_WORDED})(?: ?{_SECONDS})?(?![\w%:]|[.,]?[0-9])")
_ARROWS = re.compile(
    r" ?(?:-{1,3}>|={1,2}>|[→⟶⇒➔➜]|…|\.{2,3}|\b(?:through|till|til|hasta|bis|à|до)\b|(?<=[0-9s]) a (?=[0-9])|"
    r"[到至]|から|부터|[~〜～]) ?"
)
_LEFT_OUT = str.maketrans(dict.fromkeys("第从從在约", " ") | {";": ", "})
_BETWEEN = re.compile(rf"(?<![\w.])({_TIME}{_UNIT}) (?:and|et|und|y) ({_TIME}{_UNIT})(?![\w.:])")
_TAGS = re.compile(r"</?[a-z_]{1,20}>|<\|[a-z_]{1,20}\|>|[<>]")
_LABEL = r"(?:s|es|ing)?(?:[ _-]?(?:time|sec|seconds|timestamp|point)s?)?\b[\"']?(?: ?(?:[:=]|is|at)(?= ?[0-9\"']))? ?"
_START_LABEL = re.compile(rf"[\"']?\b(?:start|begin|from){_LABEL}")
_END_LABEL = re.compile(rf"(?: ?(?:[,;]|\bto\b|\band\b) ?| )?[\"']?\b(?:end|stop|finish){_LABEL}(?=[\"']?[0-9])")
# Keys of mappings, their letters alone: "start_time", "startTime", "end (s)".
_START_KEY = re.compile(r"from|t?(?:start|begin)(?:time|timestamp|s|secs?|seconds?)?|(?:time|t)start")
_END_KEY = re.compile(r"to|t?(?:end|stop|finish)(?:time|timestamp|s|secs?|seconds?)?|(?:time|t)end")
_SPAN_KEY = re.compile(r"time|span|segment|range|interval|moment")  # over a text


def parse_spans(text: str) -> list[Span]:
    """Parse the spans in a text, in seconds: "2.0 to 3.5", "2.0-3.5 s", "[2.0, 3.5]", "00:12 to 00:15".

    There may be several spans, and words around them are ignored ("from 2 to 3 and from 5 to 6 seconds"). Clock times
    are m:ss or h:mm:ss. The list is empty if any number is not part of a span, a unit is not the second, or a span does
    not run forward from zero or later.
    """
    text = " ".join(text.casefold().split())
    if _FOREIGN.search(_SPAN.sub(" ", text)):
        return []
    spans = [(_seconds(match[2]), _seconds(match[3])) for match in _SPAN.finditer(text)]
    return spans if all(start < end for start, end in spans) else []


def spans_of(value: Any) -> list[Span]:
    """Return the spans, in seconds, of a text, list or mapping, in the forms of `parse_spans` and those models write.

    JSON and Python literals: [start, end], lists of them, mappings with start and end ("start_time", "end"), whose other
    keys are ignored; times are numbers or texts. Text: clock times with fractions, "1 min 5 s", "0m12s", "12秒到20秒",
    "<12.0 seconds>", "between 12 and 20", arrows. Minutes need a unit on both sides. Empty if any part cannot be read.
    """
    if isinstance(value, str):
        text = undress(value)
        structure = read_structure(text)
        return _spans_of_text(text) if structure is None else spans_of(structure)
    spans = list(_spans_within(value))
    return spans if all(span is not None and span[0] < span[1] for span in spans) else []


def _spans_of_text(text: str) -> list[Span]:
    text = _ABOUT.sub(r"\1", _SYLLABLES.sub(" s ", " ".join(text.casefold().translate(_LEFT_OUT).split())))
    text = " ".join(_TAGS.sub(" ", _ARROWS.sub(" to ", text)).split())
    text = _AROUND_ONE.sub(r"\1", _END_LABEL.sub(" to ", _START_LABEL.sub("", text)))
    text = " ".join(_in_seconds(text.replace('"', " ").replace("'", " ")).split())
    return parse_spans(text) or parse_spans(_BETWEEN.sub(r"\1 to \2", text))


def _in_seconds(text: str) -> str:
    """Convert clock times and times with a unit to seconds; unreadable if only some times have a unit."""
    minutes = bare = False

    def seconds(match: re.Match) -> str:
        nonlocal minutes
        clock, hours, mins, secs = match.groups()
        if clock is None and not (hours or mins or secs):
            return match[0]
        minutes |= bool(hours or mins)
        value = _seconds(clock.replace(",", ".")) if clock else _seconds(f"{hours or 0}:{mins or 0}:{secs or 0}")
        return f" {value:.6f} s "

    converted = _ANY_TIME.sub(seconds, text)
    bare = bool(re.search(r"[0-9](?![0-9.]| s )", converted))
    return "" if minutes and bare else converted


def _spans_within(value: Any) -> Iterator[Span | None]:
    """Yield every span of a structure; None for a value that has the form of a span but is invalid."""
    if isinstance(value, Mapping):
        keys = {re.sub(r"[^a-z]", "", str(key).lower()): item for key, item in value.items()}
        starts, ends = ([keys[key] for key in keys if form.fullmatch(key)] for form in (_START_KEY, _END_KEY))
        if len(starts) == len(ends) == 1:
            yield _span(starts[0], ends[0])
        else:
            for key, item in keys.items():
                if isinstance(item, list | tuple | Mapping):
                    yield from _spans_within(item)
                elif isinstance(item, str) and _SPAN_KEY.search(key) and re.search("[0-9]", item):
                    yield from _spans_of_text(item) or [None]
    elif isinstance(value, list | tuple):
        nested = [isinstance(item, list | tuple | Mapping) for item in value]
        if len(value) == 2 and not any(nested) and None not in (span := _times(value)):
            yield (span[0], span[1])
        elif all(nested):
            for item in value:
                yield from _spans_within(item)
        elif all(isinstance(item, str) for item in value):
            for item in value:
                yield from _spans_of_text(item) or [None]
        else:
            yield None
    else:
        yield None


def _span(start: Any, end: Any) -> Span | None:
    start, end = _times((start, end))
    return None if start is None or end is None else (start, end)


def _times(values: Sequence[Any]) -> list[float | None]:
    """Convert numbers, or texts with or without a unit, to seconds >= 0; None for other values."""
    texts = [" ".join(_in_seconds(_TAGS.sub(" ", str(value).casefold())).split()) for value in values]
    found = [re.fullmatch(rf"({_TIME}){_UNIT}", text) for text in texts]
    return [match and _seconds(match[1]) for match in found]


def temporal_iou(predicted: Sequence[Sequence[float]], target: Sequence[Sequence[float]]) -> float:
    """|P and T| / |P or T|, where P and T are the unions of the predicted and of the target spans.

    Args: predicted, target: [start, end] spans in one unit, in any order; they may overlap. Either may be empty.
    Returns: a float in [0, 1]; 0.0 if both unions have no length.
    Raises: ValueError if a span is not two finite numbers with start <= end.
    """
    predicted, target = _merge(predicted), _merge(target)
    shared, p, t = 0.0, 0, 0
    while p < len(predicted) and t < len(target):
        (p_start, p_end), (t_start, t_end) = predicted[p], target[t]
        shared += max(0.0, min(p_end, t_end) - max(p_start, t_start))
        if p_end < t_end:
            p += 1
        else:
            t += 1
    union = sum(end - start for start, end in predicted) + sum(end - start for start, end in target) - shared
    return min(1.0, shared / union) if union > 0 else 0.0


def _seconds(time: str) -> float:
    seconds = 0.0
    for part in time.split(":"):
        seconds = 60 * seconds + float(part)
    return seconds


def _merge(spans: Sequence[Sequence[float]]) -> list[Span]:
    """Return the union of spans as sorted, disjoint spans."""
    merged: list[Span] = []
    for span in spans:
        if len(span) != 2 or not all(math.isfinite(time) for time in span) or span[0] > span[1]:
            raise ValueError(f"a span is [start, end], finite, with start <= end; found {span!r}.")
    for start, end in sorted((start, end) for start, end in spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged
