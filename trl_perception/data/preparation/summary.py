"""Summarizes what a preparation kept and dropped: numbers, a table for the terminal, a card for the folder."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .folder import STATE, SplitFolder, write_atomically

MEASURES = {"duration": "seconds of video", "visual_tokens": "visual tokens (estimate)"}
POINTS = {"min": 0, "median": 50, "95 %": 95, "max": 100}


def summarize(folder: SplitFolder, tallies: Sequence[Mapping[str, Any]], spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return counts and distributions over the drafts of a split, as JSON."""
    dropped, examples = Counter(), {}
    for tally in tallies:
        dropped.update(tally["dropped"])
        examples = {**tally["examples"], **examples}
    of_rows = {"duration": [d for d in folder.column("duration") if d], "visual_tokens": folder.column("visual_tokens")}
    return {
        "data_set": spec["data_set"],
        "title": spec["title"],
        "split": folder.split,
        "records": sum(tally["records"] for tally in tallies),
        "kept": sum(tally["kept"] for tally in tallies),
        "dropped": dict(dropped.most_common()),
        "examples": examples,
        "problem_types": dict(
            Counter(kind or "without a problem type" for kind in folder.column("problem_type")).most_common()
        ),
        **{name: _distribution(values) for name, values in of_rows.items()},
        "video_settings": {key: value for key, value in _media_settings(spec["options"]).items() if value is not None},
        "template": spec["options"]["template"],
    }


def as_text(summary: Mapping[str, Any]) -> str:
    """Return the table that the command prints."""
    lines = [
        f"{summary['title']}, split {summary['split']}: {summary['records']:,} records, {summary['kept']:,} rows kept"
    ]
    for reason, count in summary["dropped"].items():
        lines.append(f"  dropped  {count:>9,}  {reason}, first: {summary['examples'][reason]}")
    for problem_type, count in summary["problem_types"].items():
        lines.append(f"  kept     {count:>9,}  {problem_type}")
    for name, title in MEASURES.items():
        if summary[name]:
            points = ", ".join(f"{point} {summary[name][point]:,g}" for point in (*POINTS, "mean"))
            lines.append(f"  {title}: {points}; {summary[name]['rows']:,} rows")
    if summary["visual_tokens"]:
        lines.append(f"  visual tokens with {_settings(summary)}")
    return "\n".join(lines)


def write_card(folder: SplitFolder) -> None:
    """Write README.md for all finished splits."""
    finished = sorted((folder.root / STATE).glob("*/finished.json"))
    summaries = [json.loads(path.read_text()) for path in finished]
    titles = ", ".join(dict.fromkeys(summary["title"] for summary in summaries))
    sections = "\n\n".join(_section(summary) for summary in summaries)
    write_atomically(
        folder.root / "README.md",
        f"---\ntags:\n- trl-perception\n---\n\n# {titles}, prepared\n\n{_ABOUT}\n{sections}\n",
    )


_ABOUT = """Rows for `GRPOVideoTrainer`: in a recipe, `dataset_name` is this folder.

- `prompt`: one user turn with placeholders; `videos`, `images`: their files. Paths without a leading `/` count from
  this folder. Other media must stay where they are; `trl-perception prepare --relative-media` writes paths that let
  the folder be moved together with them.
- `problem_type`, `solution`, `options`: what the accuracy reward reads; `time_spans`: seconds that hold the answer.
- `duration`: seconds of video; `visual_tokens`: an estimate at the settings below; `pass_rate`: of the model by which
  rows were chosen; `prompt_template`: the template that the prompts carry; `completion`, where rows have one, is for
  supervised warm-up.

The license is the source's.
"""


def _section(summary: Mapping[str, Any]) -> str:
    lines = [
        f"## {summary['split']}",
        "",
        f"From {summary['title']} (`trl-perception prepare {summary['data_set']}`): ",
    ]
    lines[-1] += f"{summary['kept']:,} of {summary['records']:,} records kept. Prompt template: {summary['template']}."
    lines += ["", "| rows | | |", "|---|---|---|"]
    lines += [f"| dropped | {reason} | {count:,} |" for reason, count in summary["dropped"].items()]
    lines += [f"| kept | {problem_type} | {count:,} |" for problem_type, count in summary["problem_types"].items()]
    measured = [name for name in MEASURES if summary[name]]
    if measured:
        lines += ["", f"| | {' | '.join(POINTS)} | mean |", "|---|" + "---|" * (len(POINTS) + 1)]
    for name in measured:
        lines.append(f"| {MEASURES[name]} | {' | '.join(f'{summary[name][p]:,g}' for p in (*POINTS, 'mean'))} |")
    return "\n".join([*lines, "", f"Visual tokens with {_settings(summary)}."] if measured else lines)


def _media_settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of media sizes; those of images have the prefix `image_`."""
    return {
        **options["video"],
        **dict(zip(("image_min_pixels", "image_max_pixels"), options["image_limits"], strict=True)),
    }


def _settings(summary: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in summary["video_settings"].items())


def _distribution(values: Sequence[float | None]) -> dict[str, float]:
    known = [value for value in values if value is not None]
    if not known:
        return {}
    points = {name: round(float(np.percentile(known, share)), 2) for name, share in POINTS.items()}
    return {**points, "mean": round(float(np.mean(known)), 2), "rows": len(known)}
