"""Small line charts as inline SVG, without a library in the page."""

import json
import math
from collections.abc import Sequence

from markupsafe import Markup

from .curves import Chart
from .run import Points

WIDTH, HEIGHT = 340, 168
LEFT, RIGHT, TOP, BOTTOM = 40, 8, 8, 22


def draw(chart: Chart) -> Markup:
    """Draw a chart as SVG: each line's moving average over a twentieth of its points, with faint raw values behind."""
    xs = [x for line in chart.lines for x, _ in line.points]
    ys = [y for line in chart.lines for _, y in line.points]
    x_low, x_high = min(xs), max(xs)
    ticks = nice_ticks(min(ys), max(ys))
    y_low, y_high = ticks[0], ticks[-1]

    def place(point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - x_low) / (x_high - x_low) if x_high > x_low else 0.5
        up = (point[1] - y_low) / (y_high - y_low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = []
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        y = place((x_low, tick))[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label}</text>')
    for tick, anchor in ((x_low, "start"), (x_high, "end")) if x_high > x_low else ((x_low, "middle"),):
        x = place((tick, y_low))[0]
        name = "step " if anchor != "end" else ""
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{name}{tick:g}</text>')
    for line in chart.lines:
        style = f"line c{line.colour % 6}{' other' if line.other else ''}"
        smooth = moving_average(line.points)
        if smooth != line.points:
            parts.append(f'<path class="raw {style}" d="{_path(line.points, place)}"/>')
        if len(smooth) == 1:
            x, y = place(smooth[0])
            parts.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>')
        else:
            parts.append(f'<path class="{style}" d="{_path(smooth, place)}"/>')
    parts.append(f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
    data = {
        "x": [x_low, x_high],
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "lines": [
            [f"{line.label} {line.run}".strip(), [[x, float(f"{y:.4g}")] for x, y in line.points]]
            for line in chart.lines
        ],
    }
    said = "; ".join(
        f"{line.label} {line.run} from {number(line.points[0][1])} to {number(line.points[-1][1])}"
        for line in chart.lines
    )
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}" data-chart="{}">{}</svg>').format(
        WIDTH, HEIGHT, f"{chart.title}: {said}", json.dumps(data), Markup("".join(parts))
    )


def nice_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return two to `most` round numbers whose range contains [low, high]."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        reach = abs(high) / 2 or 1.0
        low, high = min(low, high - reach) if low < 0 else max(0.0, low - reach), high + reach
    rough = (high - low) / (most - 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    steps = (factor * unit for factor in (1, 2, 2.5, 5, 10, 20))  # the last is at least twice the rough one
    bounds = ((step, math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)) for step in steps)
    step, first, last = next(bound for bound in bounds if bound[2] - bound[1] < most)
    return [round(index * step, 12) for index in range(first, last + 1)]


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Format ticks with enough decimals to differ; in powers of ten if plain digits are too many."""
    largest = max(map(abs, ticks))
    if not 1e-3 <= largest < 1e5:
        return [f"{tick:g}" for tick in ticks]
    decimals = max(0, 1 - math.floor(math.log10(ticks[1] - ticks[0])))
    if decimals and all(f"{tick:.{decimals}f}".endswith("0") for tick in ticks):
        decimals -= 1
    return [f"{tick:.{decimals}f}" for tick in ticks]


def moving_average(points: Points) -> Points:
    """Return, for each point, the mean of the last twentieth of the series up to it."""
    window, values = max(1, len(points) // 20), [value for _, value in points]
    kept = [values[max(0, i - window + 1) : i + 1] for i in range(len(values))]
    return [(x, sum(part) / len(part)) for (x, _), part in zip(points, kept, strict=True)]


def number(value: float) -> str:
    """Format a number with at most three significant digits, without an exponent if possible."""
    if value != 0 and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.3g}'):g}"


def _path(points: Points, place) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in map(place, points))
