"""The results of a study as Markdown tables."""

from collections.abc import Mapping
from typing import Any

from ..evaluation.tables import aligned
from ..reports.charts import number
from .results import BUDGETS

EQUAL = {"step": "equal updates", "rollouts": "equal rollouts", "processor_seconds": "equal processor time"}
COSTS = ("tokens a step", "completions a step", "evidence in credit, %", "by chance, %")
Lines = list[list[str]]


def as_markdown(results: Mapping[str, Any]) -> str:
    """Format all tables of a study, those of each model under its name."""
    parts = [stated(results)]
    for model, of_model in results["models"].items():
        parts += [f"**{model}.** {of_model_stated(results, of_model)}"]
        parts += [aligned(lines) for lines in tables(results, of_model).values()]
    return "\n\n".join(parts) + "\n"


def stated(results: Mapping[str, Any]) -> str:
    """What the figures are, in words, with the cells that are missing."""
    settings, cells = results["settings"], results["cells"]
    text = (
        f"Percent right on held-out rows, mean over {len(settings['seeds'])} seeds; in brackets 95 % intervals of the difference "
        f"from {settings['baseline']} by the hierarchical bootstrap over seeds and rows. Tuning of the methods: "
        f"{settings['tuning']}."
    )
    if cells["missing"]:
        text += f" Missing: {'; '.join(cells['missing'])}."
    return text


def of_model_stated(results: Mapping[str, Any], of_model: Mapping[str, Any]) -> str:
    """What holds for one model, in words."""
    budgets, before = of_model["budgets"], of_model["before"]["accuracy"]["mean"]
    text = (
        f"{of_model['rows']:,} rows, {percent(before)} before training. Equal budgets: {budgets['step']:g} updates, "
        f"{budgets['rollouts']:,.0f} completions, {budgets['processor_seconds'] / 60:.1f} minutes of processor time. All "
        f"training together took {of_model['processor_seconds'] / 3600:.1f} hours of processor time."
    )
    if (least := of_model["detectable"]) is not None:
        text += f" A true difference of {100 * least:.1f} points would be found with a probability of 80 %, or more."
    return text


def tables(results: Mapping[str, Any], of_model: Mapping[str, Any]) -> dict[str, Lines]:
    """Return the tables of one model as lines of cells by title: methods, cost, and one for each column of groups."""
    methods, target = of_model["methods"], results["settings"]["target_reward"]
    found = {
        "Accuracy": [["method", "seeds", *(EQUAL[budget] for budget in BUDGETS), "detectable"]]
        + [
            [
                name,
                str(len(figures["seeds"])),
                *(cell(figures["equal"][budget]) for budget in BUDGETS),
                points(figures["equal"]["step"]["detectable"]),
            ]
            for name, figures in methods.items()
        ],
        "Cost": [["method", f"steps to reward {_value(target)}", "seconds a step", "processor seconds a step", *COSTS]]
        + [
            [
                name,
                _reached(figures["steps_to_reward"]),
                *(f"{figures['per_step'][key]:.2f}" for key in ("seconds", "processor_seconds")),
                *(f"{figures['per_step'][key]:,.0f}" for key in ("tokens", "rollouts")),
                *(_share(figures["evidence"], key) for key in ("share", "chance")),
            ]
            for name, figures in methods.items()
        ],
    }
    for column, groups in of_model["before"].get("groups", {}).items():
        before = [cell(groups[label]) for label in groups]
        found[f"By {column}"] = [[column, *groups], ["before", *before]] + [
            [name, *(cell(figures["equal"]["step"]["groups"][column][label]) for label in groups)]
            for name, figures in methods.items()
        ]
    return found


def cell(figures: Mapping[str, Any]) -> str:
    """Format an accuracy, and the difference from the baseline with its interval."""
    text, difference = percent(figures["accuracy"]["mean"]), figures["difference"]
    return text if difference is None else f"{text} ({change(difference)})"


def change(difference: Mapping[str, Any]) -> str:
    """Format a difference in points with its interval; without one for a single seed."""
    ends = "" if difference["low"] is None else f" [{100 * difference['low']:+.1f}, {100 * difference['high']:+.1f}]"
    return f"{100 * difference['mean']:+.1f}{ends}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def points(value: float | None) -> str:
    """Format a difference that may be unknown."""
    return "-" if value is None else percent(value)


def _value(value: float | None) -> str:
    return "(none set)" if value is None else number(value)


def _reached(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    steps = "not reached" if found["median"] is None else f"{found['median']:g}"
    return f"{steps} ({found['reached']} of {found['seeds']})"


def _share(evidence: Mapping[str, float] | None, key: str) -> str:
    return "-" if evidence is None else percent(evidence[key])
