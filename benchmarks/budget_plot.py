"""Draw score against bytes of the ways of `budget.py` and `peers.py`; not a program."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BASELINES = {"control": "trained without compression", "dense": "the dense model"}
# Groups of ways: label, colour, marker, whether it is filled, and whether a line joins the points.
OURS, SHOTS, PAPER, OTHERS = "ours, trained", "ours, rounded once", "pruning or fewer layers, trained", "other tools"
STYLES: dict[str, tuple[str, str, bool, bool]] = {
    OURS: ("#0072b2", "o", True, True),
    SHOTS: ("#0072b2", "o", False, True),
    PAPER: ("#d55e00", "s", True, False),
    OTHERS: ("#59636e", "D", False, False),
}
NAMES = {
    "ort-dynamic": "ONNX Runtime, dynamic int8",
    "ort-static": "ONNX Runtime, static int8",
    "ort-int4-linear": "ONNX Runtime, int4 linear",
    "ort-int4": "ONNX Runtime, int4",
    "nncf": "NNCF int8",
    "nncf-int4": "NNCF int4",
    "nncf-int4-gptq": "NNCF int4, GPTQ",
    "mp60+int8": "60 % zeros + int8",
    "cut3+int8": "3 layers + int8",
    "cut3+4": "3 layers, 4 MB",
    "mp60+5": "60 % zeros, 5 MB",
}
LINE, WIDTH = 0.036, 1.9  # Height of a name as a share of the axis, and its width as a ratio of bytes.


@dataclass(frozen=True)
class Point:
    """A way with its bytes, its mean score, and the 95 % interval of its difference from the baseline."""

    way: str
    bytes: float
    score: float
    interval: tuple[float, float] | None

    @property
    def group(self) -> str:
        if self.way.startswith("shot-"):
            return SHOTS
        if self.way.replace(".", "").isdecimal():
            return OURS
        return OTHERS if self.way.startswith(("ort-", "nncf")) else PAPER


def draw(points: Sequence[Point], base: str, path: Path, what: str) -> None:
    """Write the plot to `path`; the same points give the same file. `base` is the way of the horizontal line."""
    settings = {"svg.hashsalt": "hf_compress", "svg.fonttype": "none", "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(8.2, 4.8), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw(axes, points, base)
        axes.set_ylabel(what)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else {})


def _draw(axes: Any, points: Sequence[Point], base: str) -> None:
    (line_of,) = [point for point in points if point.way == base]
    label = f"{BASELINES[base]}, {line_of.bytes / 1e6:.1f} MB"
    axes.axhline(line_of.score, color="#00875a", linewidth=1.1, label=label)
    shown = [point for point in points if point.way not in BASELINES]
    for group, (colour, marker, filled, joined) in STYLES.items():
        some = sorted((point for point in shown if point.group == group), key=lambda point: point.bytes)
        if not some:
            continue
        sizes, scores = [point.bytes / 1e6 for point in some], [point.score for point in some]
        line = ("-" if filled else "--") if joined else "none"
        face = colour if filled else "white"
        for point in some:
            if point.interval:
                low, high = (line_of.score + end for end in point.interval)
                axes.plot([point.bytes / 1e6] * 2, [low, high], color=colour, linewidth=0.9, alpha=0.7)
        axes.plot(
            sizes, scores, linestyle=line, color=colour, marker=marker, markersize=5, markerfacecolor=face, label=group
        )
    axes.set_xscale("log")
    axes.set_xlim(min(point.bytes for point in shown) / 1.15e6, 1.9 * max(point.bytes for point in shown) / 1e6)
    ticks = [
        tick for tick in (2, 3, 4, 5, 7, 10, 15, 20, 30, 50, 90) if axes.get_xlim()[0] < tick < axes.get_xlim()[1]
    ]
    axes.set_xticks(ticks, [f"{tick}" for tick in ticks])
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xlabel("MB of the file, 10⁶ bytes")
    axes.grid(alpha=0.2, linewidth=0.6)
    _label(axes, [point for point in shown if point.group in (PAPER, OTHERS)])


def _label(axes: Any, points: Sequence[Point]) -> None:
    """Write names beside points, moved down where they would overlap another name."""
    low, high = axes.get_ylim()
    written: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda point: -point.score):
        size, place = point.bytes / 1e6, point.score
        for other, above in sorted(written, reverse=True, key=lambda one: one[1]):
            if 1 / WIDTH < size / other < WIDTH and abs(place - above) < LINE * (high - low):
                place = above - LINE * (high - low)
        written.append((size, place))
        axes.annotate(
            NAMES.get(point.way, point.way),
            (size, point.score),
            (1.04 * size, place),
            va="center",
            fontsize=7.5,
            color=STYLES[point.group][0],
        )
