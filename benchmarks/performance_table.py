"""The figures of `benchmarks.performance` as a table in Markdown and as a plot."""

from pathlib import Path

from matplotlib.figure import Figure

TARGETS = {"appo": 0.03, "pgpo": 0.04, "ktr": 0.20, "ral": 0.04}


def as_markdown(result: dict) -> str:
    """Every line of the design's table of targets, with the measurement."""
    lines = [f"{result['machine']}; {result['model']}", ""]
    lines += [
        "| P | G | R | update: speed-up | token ratio | its peak memory | rollout: speed-up | gradients differ by |"
    ]
    lines += ["|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for case in result["shared"]:
        update, rollout = case["update"], case["rollout"]
        lines.append(
            f"| {case['P']} | {case['G']} | {case['R']} | {update['speedup']:.1f} | {update['token_ratio']:.1f} | "
            f"{update['memory']:.2f} | {rollout['speedup']:.1f} | {update['gradient_difference']:.0e} |"
        )
    titles = "segments: speed-up | its peak memory | decoding: speed-up | its peak memory"
    lines += ["", f"| P | G | R | {titles} |", "|---:|---:|---:|---:|---:|---:|---:|"]
    for segments, decoding in zip(result["segments"], result["decoding"], strict=True):
        cells = [str(decoding[key]) for key in "PGR"]
        cells += [
            f"{case[key]:{form}}"
            for case in (segments, decoding)
            for key, form in (("speedup", ".1f"), ("memory", ".2f"))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += families_as_markdown(result.get("families", {}))
    rows, short = result["attention rows"], result["short prompts"]
    lines += ["", "| what | measured | target |", "|---|---:|---:|"]
    lines.append(f"| attention rows against the eager map, time | {rows['speedup']:.0f} x | >= 20 x |")
    lines.append(f"| the same, memory | {1 / max(rows['memory'], 1e-9):.0f} x | >= 50 x |")
    for name, of_one in result["methods"].items():
        if name == "grpo":
            continue
        target = f"<= {TARGETS[name]:+.0%}" if name in TARGETS else ""
        span = f"{min(of_one['each']):+.1%} to {max(of_one['each']):+.1%}"
        measured = f"{of_one['over_grpo']:+.1%} ({span}); {of_one['in_hooks']:.1%}"
        lines.append(f"| {name}: a whole step over GRPO's; of the step in its hooks | {measured} | {target} |")
    speedup = result["methods"]["grpo"]["speedup"]
    lines.append(f"| GRPO: a whole step on the fast paths against the plain ones | {speedup:.1f} x | |")
    trl, ours = result["peer"]
    lines.append(
        f"| GRPO on an image: a whole step of TRL's trainer against one of this package; its peak memory | "
        f"{ours['speedup']:.1f} x; {ours['peak_mib'] / trl['peak_mib']:.2f} | |"
    )
    lines.append(f"| a step of the tiny recipe, chosen by auto, against plain | {short['speedup']:.1f} x | >= 1 x |")
    return "\n".join(lines) + "\n"


def methods_as_markdown(methods: dict[str, dict]) -> str:
    """A step of each method: its time over that of GRPO, and the share of it in the hooks of the method."""
    lines = ["| method | over GRPO | of the step in its hooks |", "|---|---:|---:|"]
    lines += [
        f"| {name} | {of_one['over_grpo']:+.1%} | {of_one['in_hooks']:.1%} |"
        for name, of_one in methods.items()
        if "in_hooks" in of_one
    ]
    return "\n".join(lines) + "\n"


def families_as_markdown(families: dict[str, dict]) -> list[str]:
    """Lines of the table of the update by family; none before a family is measured."""
    if not families:
        return []
    titles = (
        "| family | M parameters | P | G | R | update: speed-up | token ratio | its peak memory | gradients differ by |"
    )
    lines = ["", titles, "|---|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for name, case in families.items():
        update = case["update"]
        sizes = " | ".join(str(case[key]) for key in "PGR")
        lines.append(
            f"| {name} | {case['millions']:.0f} | {sizes} | {update['speedup']:.1f} | {update['token_ratio']:.1f} | "
            f"{update['memory']:.2f} | {update['gradient_difference']:.0e} |"
        )
    return lines


def with_table(page: str, table: str, name: str = "table") -> str:
    """The page with the table between the comments `name` and `end of name` replaced."""
    start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    before, rest = page.split(start)
    _, after = rest.split(end)
    return f"{before}{start}\n{table}{end}{after}"


def plot(result: dict, path: Path) -> None:
    """Cost of an update against the length of the prompt, one row a completion and packed, a panel for each G."""
    counts = sorted({case["G"] for case in result["shared"]})
    figure = Figure(figsize=(4.2 * len(counts), 3.2), layout="constrained")
    for axes, count in zip(figure.subplots(1, len(counts), squeeze=False, sharey=True)[0], counts, strict=True):
        cases = sorted((case for case in result["shared"] if case["G"] == count), key=lambda case: case["P"])
        lengths = [case["P"] for case in cases]
        axes.plot(
            lengths, [case["update"]["slow_s"] for case in cases], "o-", color="#b35806", label="one row a completion"
        )
        axes.plot(lengths, [case["update"]["fast_s"] for case in cases], "o-", color="#542788", label="one packed row")
        axes.set(title=f"G = {count}", xlabel="prompt tokens")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylim(bottom=0)
    figure.axes[0].set_ylabel("seconds of an update")
    figure.axes[0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})
