"""How the figures of docs/guide.md are drawn: frames as a strip, completions as boxes of tokens with their numbers."""

from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import matplotlib
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image

WIDTH = 620.0  # all lengths here are in points
MARGIN = 14.0
COLOURS = 256  # colours of the palette; keeps the files small
LABEL = 92.0  # left column
INK, FAINT, LINE = "#1b1b2b", "#6b6b7b", "#c9c9d3"
PURPLE, ORANGE = "#542788", "#b35806"
SIGNALS = {"visual": ("V", "#0072b2"), "temporal": ("T", "#d55e00"), "entropy": ("H", "#007a5a")}  # Okabe-Ito
MONO = {"family": "DejaVu Sans Mono"}
TOKEN_SIZE = 8.2
CHARACTER = 0.602 * TOKEN_SIZE  # width of every glyph of the font
DIVERGING, SEQUENTIAL = matplotlib.colormaps["PuOr"], matplotlib.colormaps["Purples"]


class Page:
    """A figure that grows downwards; coordinates are in points from the top left."""

    def __init__(self, title: str, says: str, example):
        self.example, self.y = example, MARGIN
        self.figure = Figure(facecolor="white")
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set_axis_off()
        self.text(MARGIN, 10, title, size=14, weight="bold")
        self.y += 20
        self.text(MARGIN, 8, says, size=8.6, color=FAINT)
        self.y += 20
        question = example.row["prompt"][0]["content"][-1]["text"].replace("\n", "   ")
        self.text(MARGIN, 8, "question", size=8, color=FAINT)
        self.text(MARGIN + LABEL, 8, question, size=9)
        self.y += 14
        self.text(MARGIN, 8, "answer", size=8, color=FAINT)
        self.text(MARGIN + LABEL, 8, example.row["solution"], size=9, weight="bold")
        self.y += 22

    def text(self, x: float, dy: float, text: str, **style) -> None:
        self.axes.text(x, self.y + dy, text, **{"color": INK, "va": "baseline", **style})

    @property
    def cells(self) -> int:
        return -(-len(self.example.frames) // 2)

    def cell(self, number: int) -> tuple[float, float]:
        """Left edge and width of a temporal cell in the strip."""
        width = (WIDTH - 2 * MARGIN - LABEL) / self.cells
        return MARGIN + LABEL + number * width, width - 5

    def clip(self, label: str, order: Sequence[int] | None = None, *, evidence: bool = True) -> None:
        """The frames, two a cell, in order or in another one; a bar above those that hold the answer."""
        frames, times = self.example.frames, self.example.times
        top = self.y + (9 if evidence else 0)
        left, width = self.cell(0)
        side = width / 2
        self.axes.text(MARGIN, top + side / 2 + 3, label, size=8, color=FAINT)
        for place, source in enumerate(order if order is not None else range(self.cells)):
            left, width = self.cell(place)
            pair = [2 * source, 2 * source + 1]
            for half, number in enumerate(pair):
                x = left + half * side
                picture = frames[number].permute(1, 2, 0).numpy()
                self.axes.imshow(picture, extent=(x, x + side, top + side, top), interpolation="nearest", zorder=2)
            self.axes.add_patch(Rectangle((left, top), width, side, fill=False, lw=0.8, ec=INK, zorder=3))
            start, end = times[pair[0]], times[pair[1]] + times[1] - times[0]
            answers = any(min(end, b) - max(start, a) > 1e-6 for a, b in self.example.row["evidence"])
            if evidence and answers:
                self.axes.add_patch(Rectangle((left, top - 6), width, 3.4, fc=INK, ec="none"))
            self.axes.text(left + width / 2, top + side + 9, f"{start:.1f} s", size=6.8, color=FAINT, ha="center")
        if evidence:
            self.axes.text(MARGIN, top - 2.6, "holds the answer", size=7.2, color=INK)
        self.y = top + side + 14

    def heat(self, label: str, values, norm, colors, form: Callable, chosen=None) -> None:
        """One bar per cell, shaded by its value and labelled with it; selected cells are framed."""
        self.axes.text(MARGIN, self.y + 10, label, size=8, color=FAINT)
        for number, value in enumerate(values):
            left, width = self.cell(number)
            fill = colors(norm(value))
            self.axes.add_patch(Rectangle((left, self.y), width, 14, fc=fill, ec=LINE, lw=0.5))
            self.axes.text(left + width / 2, self.y + 10, form(value), size=7, ha="center", color=readable(fill))
            if chosen is not None and chosen[number]:
                self.axes.add_patch(Rectangle((left - 1, self.y - 1), width + 2, 16, fill=False, ec=INK, lw=1.8))
        self.y += 20

    def tokens(self, number: int, style: Callable, note: str | None = None, head: bool = True) -> None:
        """A completion as boxes of tokens. `style(t)` gives (fill, number below, text colour)."""
        example = self.example
        if head:
            outcome = "right" if example.accuracy[number] >= 0.5 else "wrong"
            self.y += 8
            self.text(MARGIN, 8, f"completion {number + 1} of {len(example.tokens)}", size=8.6, weight="bold")
            self.text(
                MARGIN + LABEL, 8, f"{outcome}, advantage {example.advantages[number]:+.2f}".replace("-", "−"), size=8.6
            )
            self.y += 14
        if note:
            self.axes.text(MARGIN, self.y + 11, note, size=8, color=FAINT)
        x = MARGIN + LABEL
        for t, token in enumerate(example.tokens[number]):
            shown = "␣" if token == " " else token.strip().replace("<|im_end|>", "⏎")
            width = max(len(shown) * CHARACTER + 6, 19.5)
            if x + width > WIDTH - MARGIN:
                x, self.y = MARGIN + LABEL, self.y + 31
            fill, below, *color = style(t)
            box = FancyBboxPatch(
                (x + 0.8, self.y + 0.8),
                width - 1.6,
                14.4,
                boxstyle="round,pad=0,rounding_size=2.5",
                fc=fill,
                ec=LINE,
                lw=0.6,
            )
            self.axes.add_patch(box)
            ink = color[0] if color else readable(fill)
            self.axes.text(x + width / 2, self.y + 11, shown, size=TOKEN_SIZE, ha="center", color=ink, **MONO)
            if isinstance(below, str):
                self.axes.text(x + width / 2, self.y + 24, below, size=6.4, ha="center", color=FAINT)
            else:
                spread = 7.0 * (len(below) - 1)
                for place, (letter, ink) in enumerate(below):
                    at = x + width / 2 - spread / 2 + 7.0 * place
                    self.axes.text(at, self.y + 24, letter, size=6.8, ha="center", color=ink, weight="bold")
            x += width + 1.2
        self.y += 31

    def scale(self, label: str, norm, colors, ticks: Sequence[tuple[float, str]]) -> None:
        """The legend of a colour scale."""
        self.y += 6
        left, width = MARGIN + LABEL, 190.0
        self.axes.text(MARGIN, self.y + 8, "shading", size=8, color=FAINT)
        low, high = norm.vmin, norm.vmax
        for step in range(60):
            value = low + (high - low) * (step + 0.5) / 60
            self.axes.add_patch(
                Rectangle((left + width * step / 60, self.y), width / 60 + 0.3, 9, fc=colors(norm(value)), ec="none")
            )
        for value, word in ticks:
            x = left + width * (value - low) / (high - low)
            self.axes.text(x, self.y + 18, word, size=7, color=FAINT, ha="center")
        self.axes.text(left + width + 14, self.y + 8, label, size=8, color=INK)
        self.y += 24

    def save(self, path: Path) -> None:
        height = self.y + MARGIN - 4
        self.figure.set_size_inches(WIDTH / 72, height / 72)
        self.axes.set_xlim(0, WIDTH)
        self.axes.set_ylim(height, 0)
        self.axes.set_aspect("auto")
        drawn = BytesIO()
        self.figure.savefig(drawn, dpi=150)
        picture = (
            Image.open(drawn).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        )
        picture.save(path, optimize=True)


def readable(fill) -> str:
    """Dark or light ink, by the luminance of the background."""
    red, green, blue = matplotlib.colors.to_rgb(fill)
    return INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.5 else "white"


def shade(values, norm, colors, form: Callable) -> Callable:
    return lambda t: (colors(norm(float(values[t]))), form(float(values[t])))


def signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def appo(example, path: Path) -> None:
    weights, attention, selected = (example.values[name] for name in ("weights", "attention", "selected"))
    page = Page(
        "APPO", "credit for tokens that attend to the selected frames, most where completions disagree", example
    )
    page.clip("clip")
    looked = [
        sum(a[: len(example.tokens[g]), f].mean().item() for g, a in enumerate(attention)) / len(attention)
        for f in range(attention.size(-1))
    ]
    norm = Normalize(0, max(looked) * 1.25)
    page.heat("mean attention ×10³", looked, norm, SEQUENTIAL, lambda v: f"{1000 * v:.1f}", chosen=selected.tolist())
    scale = Normalize(1, 1.7)
    for number in example.shown:
        page.tokens(number, shade(weights[number], scale, SEQUENTIAL, lambda v: f"{v:.2f}"))
    page.scale(
        "weight on the advantage; framed: frames selected", scale, SEQUENTIAL, [(1, "1"), (1.35, "1.35"), (1.7, "1.7")]
    )
    page.save(path)


def pgpo(example, path: Path) -> None:
    weights = example.values["weights"]
    page = Page("PGPO", "credit moves to tokens whose probability falls when the video is hidden", example)
    page.clip("clip")
    top = max(weights[number].max().item() for number in example.shown)
    norm = Normalize(0, top)
    for number in example.shown:
        drop = example.values["with_media"][number] - example.values["media_masked"][number]
        page.tokens(number, lambda t, d=drop: ("white", signed(float(d[t]), 1)), note="Δ log p, nats")
        page.tokens(number, shade(weights[number], norm, SEQUENTIAL, lambda v: f"{v:.2f}"), note="weight", head=False)
    ticks = [(0, "0"), (1, "1"), (top, f"{top:.1f}")]
    page.scale("weight on the advantage; its mean over a completion is 1", norm, SEQUENTIAL, ticks)
    page.save(path)


def ktr(example, path: Path) -> None:
    page = Page(
        "Video-KTR", "only key tokens learn: those that need the video, its order, or that are uncertain", example
    )
    page.clip("clip")
    page.clip("shuffled view", example.values["order"].tolist(), evidence=False)
    weights = example.values["weights"]

    def style(number: int) -> Callable:
        def of(t: int):
            found = [mark for name, mark in SIGNALS.items() if example.values[name][number, t]]
            return ("#ece7f5", found) if weights[number, t] > 0 else ("white", "", "#a5a5b0")

        return of

    for number in example.shown:
        page.tokens(number, style(number))
    page.y += 4
    page.text(MARGIN, 8, "key token by", size=8, color=FAINT)
    words = {"visual": "log p changes without the video", "temporal": "with its cells shuffled", "entropy": "entropy"}
    x = MARGIN + LABEL
    for name, (letter, ink) in SIGNALS.items():
        page.text(x, 8, letter, size=8, color=ink, weight="bold")
        page.text(x + 10, 8, words[name], size=8)
        x += 26 + 4.6 * len(words[name])
    page.text(x, 8, "grey: weight 0", size=8, color="#85859a")
    page.y += 14
    page.save(path)


def ral(example, path: Path) -> None:
    page = Page(
        "RAL", "after one update: attention is held where right completions looked, moved where wrong ones did", example
    )
    page.clip("clip")
    values = example.values
    norms = {name: Normalize(0, 1.25 * values[name][list(example.shown)].max().item()) for name in ("now", "other")}
    force = values["jsd"] * 1000
    bound = max(force[number, : len(example.tokens[number])].max().item() for number in example.shown)
    norm = TwoSlopeNorm(0, -bound, bound)
    for number in example.shown:
        sign = 1 if example.advantages[number] > 0 else -1
        page.tokens(number, shade(sign * force[number], norm, DIVERGING, lambda v: f"{abs(v):.1f}"))
        page.heat(
            "attention at rollout", values["other"][number].tolist(), norms["other"], SEQUENTIAL, lambda v: f"{v:.1%}"
        )
        change = (values["now"] - values["other"])[number]
        widest = 1.3 * (values["now"] - values["other"])[list(example.shown)].abs().max().item()
        page.heat(
            "change since, points",
            change.tolist(),
            TwoSlopeNorm(0, -widest, widest),
            DIVERGING,
            lambda v: signed(100 * v, 2),
        )
    ticks = [(-bound, "move away"), (0, "0"), (bound, "hold")]
    page.scale("JSD(now, rollout) in 10⁻³ nats, by the sign of the advantage", norm, DIVERGING, ticks)
    page.save(path)


def attn_distill(example, path: Path) -> None:
    page = Page(
        "On-Policy Attention Distillation",
        "where the student's words and its attention differ from the teacher's",
        example,
    )
    page.clip("clip")
    values = example.values
    shares = Normalize(0, 1.25 * max(values[name][list(example.shown)].max().item() for name in ("now", "other")))
    norms = {
        name: Normalize(
            0, max(values[name][number, : len(example.tokens[number])].max().item() for number in example.shown)
        )
        for name in ("gkd", "jsd")
    }
    for number in example.shown:
        page.tokens(
            number, shade(values["gkd"][number], norms["gkd"], SEQUENTIAL, lambda v: f"{v:.2f}"), note="words: KL, nats"
        )
        page.tokens(
            number,
            shade(values["jsd"][number], norms["jsd"], SEQUENTIAL, lambda v: f"{v:.2f}"),
            note="attention: JSD",
            head=False,
        )
        for label, name in (("student looks at", "now"), ("teacher looks at", "other")):
            page.heat(label, values[name][number].tolist(), shares, SEQUENTIAL, lambda v: f"{v:.1%}")
    page.save(path)


DRAWINGS = {"appo": appo, "pgpo": pgpo, "ktr": ktr, "ral": ral, "attn_distill": attn_distill}
