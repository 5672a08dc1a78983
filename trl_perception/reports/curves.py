"""Defines the curves that a report shows from a run's log, their order, and their captions."""

from collections.abc import Sequence
from dataclasses import dataclass

from .run import Points, Run

NOT_THE_METHODS = ("rewards", "completions/", "clip_ratio/", "sampling/", "media/", "tools/", "eval_")
OPTIMISER = {"loss": "Loss", "grad_norm": "Gradient norm", "learning_rate": "Learning rate"}
ACCURACY = "accuracy"  # the reward whose name contains this is shown by type of question

# Descriptions of the methods' metrics. A key that is not here is shown under its own name.
METHOD_METRICS = {
    "appo/weight_mean": ("Mean weight", "1 is GRPO's credit"),
    "appo/weight_max": ("Largest weight", "mean over groups"),
    "appo/perception_frac": ("Perception tokens", "share of tokens that look most at a selected frame"),
    "appo/frames_selected": ("Frames selected", "per group"),
    "appo/no_frame": ("Groups without a frame", "share; their tokens keep weight 1"),
    "appo/high_reward_frac": ("Successful completions", "share whose accuracy passes the threshold"),
    "appo/divergence_mean": ("Disagreement, mean", "nats, between the group's next-token distributions"),
    "appo/divergence_max": ("Disagreement, largest", "nats"),
    "pgpo/dependency_mean": ("Visual dependency", "nats, mean over tokens"),
    "pgpo/amplified_frac": ("Amplified tokens", "share above the threshold"),
    "pgpo/weight_max": ("Largest weight", "mean over groups"),
    "pgpo/mass_scale": ("Mass scale", "what conserves a completion's credit"),
    "pgpo/uniform_frac": ("Uniform completions", "share whose tokens all depend alike"),
    "ktr/visual_frac": ("Kept for the video", "share of tokens"),
    "ktr/temporal_frac": ("Kept for frame order", "share of tokens"),
    "ktr/entropy_frac": ("Kept for entropy", "share of tokens"),
    "ktr/kept_frac": ("Key tokens", "share of tokens that learn"),
    "ktr/overlap_frac": ("Kept twice", "share of tokens that two signals chose"),
    "ktr/weight_mean": ("Mean weight", "1 is GRPO's credit"),
    "ktr/empty_frac": ("Completions without a key token", "share"),
    "ral/jsd": ("Attention shift", "nats, since the rollout"),
    "ral/jsd_positive": ("Shift in good completions", "nats"),
    "ral/jsd_negative": ("Shift in bad completions", "nats"),
    "attn_distill/jsd": ("Attention: student to teacher", "nats"),
    "attn_distill/gkd": ("Words: student to teacher", "nats"),
    "attn_distill/teacher_entropy": ("Teacher's attention entropy", "nats"),
    **{
        f"{method}/{key}": words
        for method in ("ral", "attn_distill")
        for key, words in {
            "attention_entropy": ("Attention entropy", "nats; lower is more focused"),
            "visual_mass": ("Attention on visual tokens", "share"),
            "sink_mass": ("Attention on the first token", "share"),
        }.items()
    },
}


@dataclass(frozen=True)
class Line:
    """One line of a chart: its label among the chart's keys, points, colour (an index), and the run if two are shown.

    `other` is whether it belongs to the run of the comparison.
    """

    label: str
    points: Points
    colour: int = 0
    run: str = ""
    other: bool = False


@dataclass(frozen=True)
class Chart:
    """A small chart; `key` names it for links and tests."""

    key: str
    title: str
    caption: str
    lines: list[Line]


def sections(runs: Sequence[Run]) -> list[tuple[str, list[Chart]]]:
    """Return title and charts of each section, for one run or two overlaid runs; charts without points are left out.

    The order is: learning, behaviour of the policy, metrics of the method, optimiser.
    """
    keys = sorted({key for run in runs for key in run.keys})
    rewards = [key for key in keys if key.startswith("rewards/") and key.endswith("/mean")]
    by_type = [key for key in keys if key.startswith("rewards_by_type/") and ACCURACY in key.split("/")[1]]
    own = [key for key in keys if "/" in key and not key.startswith(NOT_THE_METHODS)]
    learning = [
        _chart(runs, "Reward", "mean over completions", {"reward": "reward"}),
        _chart(runs, "Each reward", "mean over completions", {key: key.split("/")[1] for key in rewards}),
        _chart(runs, "Accuracy by type of question", "mean over completions", {k: k.split("/", 2)[2] for k in by_type}),
        _chart(runs, "Held out", "reward at evaluations", {"eval_reward": "reward"}),
    ]
    behaviour = [
        _chart(
            runs,
            "Length of completions",
            "tokens",
            {"completions/mean_length": "mean", "completions/min_length": "min", "completions/max_length": "max"},
        ),
        _chart(runs, "Entropy", "nats a token; lower is surer", {"entropy": "entropy"}),
        _chart(
            runs,
            "Clipped",
            "share of tokens whose update the loss held back",
            {"clip_ratio/region_mean": "either side", "clip_ratio/low_mean": "low", "clip_ratio/high_mean": "high"},
        ),
        _chart(runs, "KL from the reference", "nats a token", {"kl": "KL"}),
        _chart(
            runs, "Groups that teach nothing", "share whose rewards are all equal", {"frac_reward_zero_std": "share"}
        ),
        _chart(runs, "Cut at the limit", "share of completions", {"completions/clipped_ratio": "share"}),
    ]
    method = [_chart(runs, *METHOD_METRICS.get(key, (key, "")), {key: key.split("/")[-1]}) for key in own]
    optimiser = [_chart(runs, words, "", {key: words}) for key, words in OPTIMISER.items()]
    titled = {"Learning": learning, "Behaviour": behaviour, "What the method says": method, "Optimiser": optimiser}
    full = {title: [chart for chart in charts if chart.lines] for title, charts in titled.items()}
    return [(title, charts) for title, charts in full.items() if charts]


def _chart(runs: Sequence[Run], title: str, caption: str, named: dict[str, str]) -> Chart:
    """Make one line per key and run: colours distinguish keys, or runs if there is one key."""
    lines = []
    for number, (key, label) in enumerate(named.items()):
        for which, run in enumerate(runs):
            points = run.series(key)
            if points:
                colour = number if len(named) > 1 else which
                lines.append(Line(label, points, colour, run.name if len(runs) > 1 else "", which > 0))
    return Chart(next(iter(named), title), title, caption, lines)
