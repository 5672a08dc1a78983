"""The results of a study as one HTML page that loads nothing: learning curves and a forest plot of the differences."""

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from ..reports.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, nice_ticks, number, tick_labels
from .table import change, of_model_stated, stated, tables

Band = Sequence[Sequence[float]]  # [x, mean, lowest, highest]
FOREST_WIDTH, ROW, LABELS, NUMBERS = 720, 26, 150, 170


def render(results: Mapping[str, Any]) -> str:
    """Return the page as text."""
    loader = ChoiceLoader(
        [PackageLoader("trl_perception.study", "page"), PackageLoader("trl_perception.reports", "page")]
    )
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("study.html").render(
        style=Markup(loader.get_source(environment, "style.css")[0]),
        results=results,
        stated=stated(results),
        models=[_view(results, model, of_model) for model, of_model in results["models"].items()],
    )


def _view(results: Mapping[str, Any], model: str, of_model: Mapping[str, Any]) -> dict[str, Any]:
    methods, baseline = of_model["methods"], results["settings"]["baseline"]
    curves = {
        title: curve_charts({name: of["curves"][key] for name, of in methods.items()}, baseline, scale)
        for key, title, scale in (
            ("accuracy", "Accuracy on held-out rows, percent", 100),
            ("reward", "Training reward", 1),
        )
    }
    equal = {name: figures["equal"]["step"] for name, figures in methods.items() if name != baseline}
    forests = {"all rows": {name: figures["difference"] for name, figures in equal.items()}}
    for column, groups in of_model["before"].get("groups", {}).items():
        for label in groups:
            of_group = {name: figures["groups"][column][label]["difference"] for name, figures in equal.items()}
            forests[f"{column}: {label}"] = of_group
    drawn = {title: forest(title, of, baseline) for title, of in forests.items() if any(of.values())}
    return {
        "name": model,
        "stated": of_model_stated(results, of_model),
        "tables": tables(results, of_model),
        "forests": drawn,
        "curves": curves,
    }


def curve_charts(curves: Mapping[str, Band], baseline: str, scale: float) -> list[tuple[str, Markup]]:
    """Draw a chart for each method: its mean as a solid line, the baseline's dashed, each with the band over its seeds.

    All charts have the same axes. Args: curves: {method: [[step, mean, lowest, highest], ...]}.
    """
    filled = {name: band for name, band in curves.items() if band}
    points = [point for band in filled.values() for point in band]
    if not points:
        return []
    ticks = nice_ticks(scale * min(p[2] for p in points), scale * max(p[3] for p in points))
    reach = min(p[0] for p in points), max(p[0] for p in points)
    chosen = [name for name in filled if name != baseline] or list(filled)
    return [
        (name, _chart({name: filled[name]} | {k: filled[k] for k in (baseline,) if k in filled}, ticks, reach, scale))
        for name in chosen
    ]


def _chart(bands: Mapping[str, Band], ticks: Sequence[float], reach: tuple[float, float], scale: float) -> Markup:
    def across(x: float) -> float:
        return LEFT + (x - reach[0]) / (reach[1] - reach[0] or 1) * (WIDTH - LEFT - RIGHT)

    def up(y: float) -> float:
        return HEIGHT - BOTTOM - (y - ticks[0]) / (ticks[-1] - ticks[0]) * (HEIGHT - TOP - BOTTOM)

    def path(points) -> str:
        return "M" + "L".join(f"{across(x):.1f},{up(scale * y):.1f}" for x, y in points)

    parts = []
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{up(tick):.1f}" y2="{up(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{up(tick) + 3.5:.1f}" text-anchor="end">{label}</text>')
    for x, anchor in zip(reach, ("start", "end"), strict=True):
        words = f"{'step ' * (anchor == 'start')}{x:g}"
        parts.append(f'<text x="{across(x):.1f}" y="{HEIGHT - 6}" text-anchor="{anchor}">{words}</text>')
    said = []
    for number_of, (name, band) in list(enumerate(bands.items()))[::-1]:  # the method above the baseline
        style = f"c{number_of}{' other' * number_of}"
        edge = [(p[0], p[3]) for p in band] + [(p[0], p[2]) for p in reversed(band)]
        parts.append(f'<path class="band c{number_of}" d="{path(edge)}Z"/>')
        parts.append(f'<path class="line {style}" d="{path([(p[0], p[1]) for p in band])}"/>')
        said.insert(0, f"{name} from {number(scale * band[0][1])} to {number(scale * band[-1][1])}")
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, "; ".join(said), Markup("".join(parts))
    )


def forest(title: str, differences: Mapping[str, Mapping[str, Any] | None], baseline: str) -> Markup:
    """Draw differences in points, a row a method: a square with its interval, filled where the interval leaves out 0."""
    shown = {name: difference for name, difference in differences.items() if difference is not None}
    ends = [100 * (d["mean"] if d[key] is None else d[key]) for d in shown.values() for key in ("low", "high")]
    ticks = nice_ticks(min(0.0, *ends), max(0.0, *ends), most=7)
    bottom = TOP + ROW * len(shown)

    def across(x: float) -> float:
        return LABELS + (x - ticks[0]) / (ticks[-1] - ticks[0]) * (FOREST_WIDTH - LABELS - NUMBERS)

    parts = []
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        kind = "zero" if tick == 0 else "grid"
        parts.append(f'<line class="{kind}" x1="{across(tick):.1f}" x2="{across(tick):.1f}" y1="{TOP}" y2="{bottom}"/>')
        parts.append(f'<text x="{across(tick):.1f}" y="{bottom + 14}" text-anchor="middle">{label}</text>')
    for row, (name, found) in enumerate(shown.items()):
        y, middle = TOP + ROW * (row + 0.5), across(100 * found["mean"])
        parts.append(f'<text class="name" x="0" y="{y + 4:.1f}">{escape(name)}</text>')
        parts.append(f'<text class="name" x="{FOREST_WIDTH}" y="{y + 4:.1f}" text-anchor="end">{change(found)}</text>')
        clear = False
        if found["low"] is not None:
            low, high = across(100 * found["low"]), across(100 * found["high"])
            parts.append(f'<line class="line c0" x1="{low:.1f}" x2="{high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            clear = found["low"] > 0 or found["high"] < 0
        parts.append(
            f'<rect class="estimate c0{" clear" * clear}" x="{middle - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
        )
    said = "; ".join(f"{name} {change(found)}" for name, found in shown.items())
    label = f"Difference from {baseline} in points, {title}: {said}"
    return Markup('<svg class="forest" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        FOREST_WIDTH, bottom + 22, label, Markup("".join(parts))
    )
