"""Formats figures as aligned Markdown tables."""

from collections.abc import Mapping, Sequence

from .compare import Comparison
from .figures import ALL, Figures
from .statistics import Estimate

PLAIN = ("tokens",)
"""Figures that are not shares."""


def is_main(name: str) -> bool:
    """Whether a figure measures the quality of answers: these are shown with intervals, and for every group."""
    return name != "cut" and name not in PLAIN and not name.startswith("reward/")


def figures_table(table: Figures) -> str:
    """Format a line for all rows and one for each value of the columns; shares in percent, with 95 % intervals."""
    names = list(table[ALL][ALL])
    lines = [["", "rows", *names]]
    for column, groups in table.items():
        for label, figures in groups.items():
            rows = max((figure.rows for figure in figures.values()), default=0)
            title = ALL if column == ALL else f"{column}: {label}"
            lines.append([title, f"{rows:,}", *(_cell(name, figures.get(name)) for name in names)])
    return aligned(lines)


def comparison_table(table: Mapping[str, Mapping[str, Mapping[str, Comparison]]]) -> str:
    """Format first, second, second - first with its 95 % interval, and rows that differ.

    A line for every figure over all rows, and for the main ones of every group.
    """
    lines = [["", "figure", "rows", "first", "second", "second - first", "higher", "lower"]]
    for column, groups in table.items():
        for label, figures in groups.items():
            for name, found in figures.items():
                if column != ALL and not is_main(name):
                    continue
                title = ALL if column == ALL else f"{column}: {label}"
                lines.append(
                    [
                        title,
                        name,
                        f"{found.difference.rows:,}",
                        _number(name, found.first),
                        _number(name, found.second),
                        _cell(name, found.difference, sign="+"),
                        str(found.higher),
                        str(found.lower),
                    ]
                )
    return aligned(lines)


def _cell(name: str, figure: Estimate | None, sign: str = "") -> str:
    if figure is None:
        return "-"
    mean = _number(name, figure.mean, sign)
    if figure.low is None or not (sign or is_main(name)):
        return mean
    return f"{mean} [{_number(name, figure.low, sign)}, {_number(name, figure.high, sign)}]"


def _number(name: str, value: float, sign: str = "") -> str:
    return f"{value if name in PLAIN else 100 * value:{sign}.1f}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Format lines of cells, titles first, as a Markdown table; the first column on the left, the others on the right."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(lines[0]))]
    rule = ["-" * width if place == 0 else "-" * (width - 1) + ":" for place, width in enumerate(widths)]
    texts = [
        "| "
        + " | ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in (lines[0], rule, *lines[1:])
    ]
    return "\n".join(texts)
