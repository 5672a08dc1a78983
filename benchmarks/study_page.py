"""Put the figures of the studies into docs/study.md: `python -m benchmarks.study_page`.

Tables, answers and the plot are made of docs/*.json, which the commands beside them on the page write.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from statistics import stdev

from matplotlib.figure import Figure

from benchmarks.gradient_variance import as_markdown as gradients_as_markdown
from benchmarks.performance_table import with_table
from benchmarks.study_colors import as_markdown as colors_as_markdown
from benchmarks.study_signals import COLUMNS
from benchmarks.study_signals import as_markdown as signals_as_markdown
from trl_perception.evaluation.tables import aligned
from trl_perception.study.cells import BASE
from trl_perception.study.table import COSTS, EQUAL, as_markdown, cell, change, of_model_stated, percent, points, stated

DOCS = Path(__file__).parents[1] / "docs"
PLOT = DOCS / "study.svg"
NOT_RUN = "Not run yet for this version.\n"
# What a method is made for, among the families of questions and the kinds of clips.
MADE_FOR = {"appo": "needle", "ktr": "event_order", "t_grpo": "event_order"}
ATTENTION, ORDER = list(COLUMNS)[:2]


def read(name: str) -> dict | None:
    """The figures of docs/NAME.json, None before they were measured."""
    file = DOCS / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else None


def tuning_as_markdown(tuning: Mapping) -> str:
    """Accuracy of each method by learning rate, in percent, the highest bold; a run is named METHOD_RATE."""
    (of_model,) = tuning["models"].values()
    found: dict[str, dict[str, float]] = {}
    for name, figures in of_model["methods"].items():
        method, _, rate = name.rpartition("_")
        found.setdefault(method, {})[rate] = figures["equal"]["step"]["accuracy"]["mean"]
    rates = list(dict.fromkeys(rate for of_method in found.values() for rate in of_method))
    rows = []
    for method, of_rates in found.items():
        best = max(of_rates.values())
        shown = {rate: f"**{percent(mean)}**" if mean == best else percent(mean) for rate, mean in of_rates.items()}
        rows.append([method, *(shown.get(rate, "-") for rate in rates)])
    runs, steps = len(tuning["settings"]["seeds"]), of_model["budgets"]["step"]
    return (
        f"Percent right of {of_model['rows']} rows after {steps:g} updates by learning rate, mean of {runs} runs; "
        f"{percent(of_model['before']['accuracy']['mean'])} before training. "
        f"All training together took {of_model['processor_seconds'] / 3600:.1f} hours of processor time.\n\n"
        + aligned([["method", *rates], *rows])
        + "\n"
    )


def ablations_as_markdown(ablations: Mapping) -> str:
    """Accuracy of each setting, and the share of its credit on evidence."""
    (of_model,) = ablations["models"].values()
    lines = [["setting", EQUAL["step"], "detectable", COSTS[2], COSTS[3]]]
    for name, figures in of_model["methods"].items():
        equal = figures["equal"]["step"]
        evidence = (percent(figures["evidence"][key]) for key in ("share", "chance"))
        lines.append([name, cell(equal), points(equal["detectable"]), *evidence])
    return f"{stated(ablations)} {of_model_stated(ablations, of_model)}\n\n{aligned(lines)}\n"


TABLES: dict[str, Callable[[Mapping], str]] = {
    "study": as_markdown,
    "colors": colors_as_markdown,
    "signals": signals_as_markdown,
    "gradients": gradients_as_markdown,
    "tuning": tuning_as_markdown,
    "ablations": ablations_as_markdown,
}


ASKED = ("study", "colors", "signals", "gradients", "ablations")  # whose figures answer the questions


def blocks() -> dict[str, str]:
    """The text between the comments of each name."""
    found = {name: read(name) for name in TABLES}
    texts = {name: NOT_RUN if found[name] is None else shown(found[name]) for name, shown in TABLES.items()}
    study = found["study"]
    texts["answers"] = NOT_RUN if study is None else "".join(answers(**{name: found[name] for name in ASKED}))
    if study is not None:
        texts["study"] += f"\n![Learning curves, and differences from the baseline]({PLOT.name})\n"
    return texts


def answers(
    study: Mapping,
    colors: Mapping | None = None,
    signals: Mapping | None = None,
    gradients: Mapping | None = None,
    ablations: Mapping | None = None,
) -> Iterator[str]:
    """A line for each question, with the figures that answer it."""
    (of_model,) = study["models"].values()
    equal = {name: figures["equal"]["step"] for name, figures in of_model["methods"].items()}
    baseline = study["settings"]["baseline"]
    others = {name: figures for name, figures in equal.items() if name != baseline}
    detectable = f"{percent(of_model['detectable'])} points" if of_model["detectable"] is not None else "unknown"
    yield f"- The smallest true difference from {baseline} that the study finds with a probability of 80 %: {detectable}.\n"
    runs = of_model["methods"][baseline]["accuracies"]
    yield (
        f"- Runs of {baseline}: {percent(min(runs))} to {percent(max(runs))} by seed, standard deviation "
        f"{percent(stdev(runs))} points.\n"
    )
    yield f"- Methods that differ from {baseline} on all rows: {clear({n: f['difference'] for n, f in others.items()})}.\n"
    for column, groups in of_model["before"]["groups"].items():
        for label in groups:
            of_label = {name: figures["groups"][column][label]["difference"] for name, figures in others.items()}
            yield f"- On {column} {label}: {clear(of_label)}.\n"
    if colors:
        of_colors = {name: found["difference"] for name, found in colors["methods"].items() if name in others}
        yield f"- On clips in other colors: {clear(of_colors)}.\n"
    for name, family in MADE_FOR.items():
        if name in others:
            difference = others[name]["groups"]["family"][family]["difference"]
            yield f"- {name} on {family}, for which it is made: {change(difference)}.\n"
    for contrast in chain(*(figures["contrasts"] for figures in (study, ablations) if figures)):
        yield f"- {contrast['method']} minus {contrast['other']}: {change(contrast['difference'])}.\n"
    if "oracle" in others:
        yield f"- Credit that knows the evidence (oracle): {change(others['oracle']['difference'])}.\n"
    for title, names in ((ATTENTION, ("ral", "attn_distill", "distill_words")), (ORDER, ("ktr",))):
        for name in names if signals else ():
            of = {method: columns[title] for method, columns in signals["methods"].items() if title in columns}
            if name in of:
                figures = ", ".join(f"{of[method]['mean']:.3f} {method}" for method in (BASE, baseline, name))
                reach = f"[{of[name]['low']:+.3f}, {of[name]['high']:+.3f}]"
                yield f"- Signal, {title}: {figures} (minus {baseline} {of[name]['difference']:+.3f} {reach}).\n"
    if gradients:
        pgpo = gradients["methods"]["pgpo"]
        yield (
            f"- Noise of PGPO's gradient over {baseline}'s: {pgpo['over_baseline']:.2f} "
            f"[{pgpo['low']:.2f}, {pgpo['high']:.2f}].\n"
        )


def clear(differences: Mapping[str, Mapping | None]) -> str:
    """The methods whose interval leaves out 0, with their difference in points."""
    found = {
        name: difference
        for name, difference in differences.items()
        if difference is not None and difference["low"] is not None and not difference["low"] <= 0 <= difference["high"]
    }
    return ", ".join(f"{name} {change(difference)}" for name, difference in found.items()) or "none"


def plot(study: Mapping, path: Path) -> None:
    """Learning curves, mean and band over seeds, and the differences from the baseline with their intervals."""
    (of_model,) = study["models"].values()
    methods, baseline = of_model["methods"], study["settings"]["baseline"]
    others = [name for name in methods if name != baseline]
    figure = Figure(figsize=(10, 1.6 + 0.3 * len(others)), layout="constrained")
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 1.2))
    for place, (key, title, scale) in enumerate(
        (("accuracy", "accuracy, held-out, %", 100), ("reward", "training reward", 1))
    ):
        axes = figure.add_subplot(grid[place, 0])
        *_, (_, _, lowest, highest) = methods[baseline]["curves"][key]
        for name, figures in methods.items():
            steps, means, low, high = zip(*figures["curves"][key], strict=True)
            strong = name == baseline
            axes.plot(
                steps, [scale * mean for mean in means], color="black" if strong else None, lw=2 if strong else 0.8
            )
            if not lowest <= means[-1] <= highest:
                axes.annotate(f" {name}", (steps[-1], scale * means[-1]), fontsize="x-small", va="center")
            if strong:
                axes.fill_between(
                    steps, [scale * v for v in low], [scale * v for v in high], color="black", alpha=0.12, lw=0
                )
        axes.set(title=f"{title} ({baseline} black, with the band of its seeds)", xlabel="step")
    axes = figure.add_subplot(grid[:, 1])
    for row, name in enumerate(others):
        difference = methods[name]["equal"]["step"]["difference"]
        if difference["low"] is not None:
            axes.plot([100 * difference["low"], 100 * difference["high"]], [row, row], color="#542788")
        axes.plot(100 * difference["mean"], row, "s", color="#542788", ms=4)
    axes.axvline(0, color="gray", lw=0.8)
    axes.set_yticks(range(len(others)), others)
    axes.invert_yaxis()
    axes.set(title=f"difference from {baseline}, points, 95 % intervals")
    for axes in figure.axes:
        axes.title.set_size("small")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    page = DOCS / "study.md"
    text = page.read_text()
    for name, block in blocks().items():
        text = with_table(text, block, name)
    page.write_text(text)
    if (study := read("study")) is not None:
        plot(study, PLOT)


if __name__ == "__main__":
    main()
