"""The report of one run, or of two side by side, as a self-contained HTML file."""

import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .charts import draw, number
from .curves import ACCURACY, Chart, Line, sections
from .group_view import view_of
from .run import Run, gain, read_run
from .signals import scales, words
from .stills import Stills
from .summary import TokenMeans, evidence_attention, token_means

MOST_GROUPS = 24
MOST_TOKENS = 60_000  # of all groups shown; a page with more is slow on a phone
MOST_PICTURE_BYTES = 6 << 20


def write_report(
    run: str | os.PathLike,
    output: str | os.PathLike | None = None,
    *,
    compare: str | os.PathLike | None = None,
    most_groups: int = MOST_GROUPS,
) -> Path:
    """Write the report of a run folder.

    Args:
        output: the HTML file; None means `report.html` in the run folder.
        compare: another run; its curves are overlaid and its gains shown next to those of the first.
        most_groups: maximum number of recorded groups to show, spread over the run.
    Returns: the file's path.
    Errors: FileNotFoundError if a folder holds no run.
    """
    path = Path(run) / "report.html" if output is None else Path(output)
    page = render(read_run(run), None if compare is None else read_run(compare), most_groups=most_groups)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def render(run: Run, other: Run | None = None, *, most_groups: int = MOST_GROUPS) -> str:
    """Return the report as text. Frames are decoded from the run's media if these can be read."""
    runs = [run] if other is None else [run, other]
    chosen = spread(run.groups, most_groups, MOST_TOKENS)
    stills = Stills(MOST_PICTURE_BYTES)
    reach = max((abs(c["advantage"]) for g in chosen for c in g["completions"]), default=0.0)
    views = [view_of(group, stills, reach) for group in reversed(chosen)][::-1]  # the latest get their pictures first
    shown = scales(chosen)
    frame_signals = [
        (name, *words(name)) for name in dict.fromkeys(n for view in views for n in view.numbers["frames"])
    ]
    environment = Environment(
        loader=PackageLoader("trl_perception.reports", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    files = {name: _file(environment, f"{name}.{ending}") for name, ending in (("style", "css"), ("script", "js"))}
    return environment.get_template("report.html").render(
        run=run,
        other=other,
        tiles=_tiles(run),
        gains=_gains(runs),
        sections=sections(runs),
        means=_means(runs),
        looks=_looks(run),
        groups=views,
        recorded=len(run.groups),
        pictures_left_out=stills.left_out,
        steps=[step for step, _ in groupby(view.step for view in views)],
        scales=shown,
        frame_signals=frame_signals,
        data={
            "groups": [view.numbers for view in views],
            "scales": [vars(scale) for scale in shown],
            "frame_signals": frame_signals,
        },
        draw=draw,
        visible=lambda token: token.replace("\n", "↵").replace(" ", "·"),
        bar=_bar,
        mean_of=_mean_of,
        legend=_legend,
        **files,
    )


def spread(groups: Sequence[dict[str, Any]], most: int, most_tokens: int) -> list[dict[str, Any]]:
    """Select at most `most` groups and `most_tokens` tokens from steps spread evenly, starting with last and first."""
    by_step = [list(of_step) for _, of_step in groupby(groups, key=lambda group: group["step"])]
    last = len(by_step) - 1
    order = [last, 0][: len(by_step)]
    while len(order) < len(by_step):  # next the step farthest from those taken
        order.append(max(set(range(len(by_step))) - set(order), key=lambda i: min(abs(i - taken) for taken in order)))
    chosen: list[dict[str, Any]] = []
    tokens = 0
    for group in (group for i in order for group in by_step[i]):
        tokens += sum(len(completion["tokens"]) for completion in group["completions"])
        if len(chosen) == most or (chosen and tokens > most_tokens):
            break
        chosen.append(group)
    return [group for group in groups if any(group is one for one in chosen)]


def _file(environment: Environment, name: str) -> Markup:
    return Markup(environment.loader.get_source(environment, name)[0])


def _headline(runs: Sequence[Run]) -> dict[str, str]:
    """Return log key -> title of the main figures of a run."""
    keys = sorted({key for run in runs for key in run.keys})
    rewards = [key for key in keys if key.startswith("rewards/") and key.endswith("/mean")]
    accuracy = [key for key in keys if key.startswith("rewards_by_type/") and ACCURACY in key.split("/")[1]]
    return {
        "reward": "Reward",
        **{key: key.split("/")[1].removesuffix("_reward").replace("_", " ").capitalize() for key in rewards},
        **{key: f"Accuracy, {key.split('/', 2)[2]}" for key in accuracy},
        "eval_reward": "Reward, held out",
        "completions/mean_length": "Tokens a completion",
        "entropy": "Entropy, nats",
    }


def _gain_of(run: Run, key: str) -> dict[str, str] | None:
    found = gain(run.series(key))
    if found is None:
        return None
    before, after = found
    return {"before": number(before), "after": number(after), "change": signed(after - before)}


def signed(value: float) -> str:
    """Format a change with its sign."""
    return number(value) if value == 0 else ("+" if value > 0 else "−") + number(abs(value))


def _tiles(run: Run) -> list[dict[str, str]]:
    tiles = []
    for key, title in _headline([run]).items():
        found = _gain_of(run, key)
        if found and not key.startswith("rewards_by_type/"):
            tiles.append({"title": title, **found, "note": f"from {found['before']}"})
    return tiles


def _gains(runs: Sequence[Run]) -> list[dict[str, Any]]:
    rows = [{"title": title, "gains": [_gain_of(run, key) for run in runs]} for key, title in _headline(runs).items()]
    return [row for row in rows if any(row["gains"])]


def _means(runs: Sequence[Run]) -> list[tuple[str, TokenMeans]]:
    found = [(f"{run.name}: " if len(runs) > 1 else "", token_means(run.groups)) for run in runs]
    return [(heading, means) for heading, means in found if means is not None]


def _mean_of(mean: float, means: TokenMeans) -> str:
    return "≈ 0" if 0 < abs(mean) < 1e-3 * abs(means.highest[0][1]) else number(mean)


def _bar(mean: float, means: TokenMeans) -> str:
    most = means.highest[0][1]
    return f"{100 * max(0.0, mean) / most:.1f}" if most > 0 else "0"


def _legend(chart: Chart) -> list[tuple[str, Line]]:
    """Label a chart's lines: by key if it has several, else by run."""
    keys = dict.fromkeys(line.label for line in chart.lines)
    by_key = {line.label: line for line in reversed(chart.lines)}
    return [(key, by_key[key]) for key in keys] if len(keys) > 1 else [(line.run, line) for line in chart.lines]


def _looks(run: Run) -> Chart | None:
    on_evidence, chance = evidence_attention(run.groups)
    lines = [Line("attention on them", on_evidence, 0), Line("their share of the frames", chance, 3)]
    caption = "recorded groups whose evidence is a part of the clip"
    return Chart("evidence", "Do they look at the evidence?", caption, lines) if on_evidence else None
