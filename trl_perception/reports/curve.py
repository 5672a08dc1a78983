"""The reward of a run: its gain in numbers and its curve as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from .run import gain


def reward_gain(log_history: Sequence[Mapping[str, float]]) -> tuple[float, float] | None:
    """Mean training reward over the first and over the last tenth of the logged steps (at least one step each).

    Args:
        log_history: `trainer.state.log_history`.
    Returns: (before, after), or None if no step logged a reward.
    """
    return gain(_series(log_history, "reward"))


def reward_curve(log_history: Sequence[Mapping[str, float]], path: str | Path) -> Path | None:
    """Draw the reward, and each reward function's mean, against the optimisation step; PNG at `path`.

    Returns: the path, or None if no step logged a reward.
    """
    series = {"reward": _series(log_history, "reward")}
    if not series["reward"]:
        return None
    names = {key for entry in log_history for key in entry if key.startswith("rewards/") and key.endswith("/mean")}
    series.update({name.split("/")[1]: _series(log_history, name) for name in sorted(names)})
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, points in series.items():
        steps, values = zip(*points, strict=True) if points else ((), ())
        window = max(1, len(values) // 20)
        smooth = [sum(values[max(0, i - window + 1) : i + 1]) / min(window, i + 1) for i in range(len(values))]
        (line,) = axes.plot(steps, smooth, label=name, linewidth=2.5 if name == "reward" else 1.3)
        axes.plot(steps, values, color=line.get_color(), alpha=0.2, linewidth=0.8)
    axes.set_xlabel("optimisation step")
    axes.set_ylabel(f"mean over completions (moving average of {max(1, len(series['reward']) // 20)} steps)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)
    return Path(path)


def _series(log_history: Sequence[Mapping[str, float]], key: str) -> list[tuple[int, float]]:
    return [(entry["step"], entry[key]) for entry in log_history if entry.get(key) is not None]
