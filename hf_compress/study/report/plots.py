"""The plots of a study's report, as SVG and PNG."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_compress.extras import extra
from hf_compress.study.analysis import published
from hf_compress.study.analysis.findings import ANALYTIC, CONTROL, DISK, Findings
from hf_compress.study.grid.combinations import COMBINATIONS, methods_in

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour shows distillation and pruning; fill shows quantization, so plots can be read without colours.
COLOURS = {"": "#59636e", "kd": "#0072b2", "mp": "#d55e00", "kd+mp": "#00875a"}
TITLE = 62  # Characters that fit above one of two plots.
PLOTS = ("figure1", "front", "interactions", "multiplicativity")


def style(combination: str) -> tuple[str, bool]:
    """Return the colour of a combination, and whether it is quantized (filled and solid)."""
    rest = "+".join(method for method in methods_in(combination) if method != "int8")
    return COLOURS[rest], "int8" in methods_in(combination)


def draw_all(findings: Findings, folder: Path) -> None:
    """Write all plots of `PLOTS` to `folder`, as SVG and PNG; the same findings give the same files."""
    with extra("plots", "A plot"):
        import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "hf_compress", "svg.fonttype": "none", "font.size": 9}):
        for name, draw in zip(PLOTS, (_figure1, _front, _interactions, _multiplicativity), strict=True):
            figure = draw(findings)
            figure.savefig(folder / f"{name}.svg", metadata={"Date": None, "Creator": None})
            figure.savefig(folder / f"{name}.png", metadata={"Software": None}, dpi=150)


def lines(findings: Findings, size: str) -> dict[str, list[tuple[float, float]]]:
    """Return, by combination, size in MB and mean score of its points, the smallest first."""
    full = findings.full
    sizes = (full.analytic if size == ANALYTIC else full.disk).mean(axis=0) / 1e6
    found: dict[str, list[tuple[float, float]]] = {}
    for place, point in enumerate(full.points):
        found.setdefault(point.combination, []).append((float(sizes[place]), float(full.scores[:, place].mean())))
    return {name: sorted(found[name]) for name in COMBINATIONS if name in found}


def paper_lines() -> dict[str, list[tuple[float, float]]]:
    """Return the same for the paper's Figure 1, by analytic size."""
    found: dict[str, list[tuple[float, float]]] = {}
    for point, (size, score) in published.figure1().items():
        found.setdefault(point.combination, []).append((size / 1e6, score))
    return {name: sorted(found[name]) for name in COMBINATIONS}


def _figure(width: float, height: float, columns: int = 1) -> tuple["Figure", Sequence["Axes"]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, columns, place + 1) for place in range(columns)]
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _curves(axes: "Axes", curves: dict[str, list[tuple[float, float]]], label: str) -> None:
    for name, points in curves.items():
        colour, filled = style(name)
        axes.plot(
            *zip(*points, strict=True), "-" if filled else "--", color=colour, marker="o", markersize=4.5, label=name,
            linewidth=1.1, markerfacecolor=colour if filled else "white",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if str(f"{value:e}")[0] in "25" else "")
    axes.set_xlabel(label)
    axes.grid(which="both", axis="x", alpha=0.15, linewidth=0.6)
    axes.grid(axis="y", alpha=0.25, linewidth=0.6)


def _plain(text: str) -> str:
    """Return text that matplotlib draws as it is: on one line, without mathematics between dollar signs."""
    return " ".join(text.split()).replace("$", r"\$")


def _figure1(findings: Findings) -> "Figure":
    figure, (left, right) = _figure(10.5, 4.6, 2)
    _curves(left, lines(findings, ANALYTIC), "analytic MB")
    title = f"ours: mean of {', '.join(findings.named_tasks)}"
    left.set_title("\n".join(map(_plain, textwrap.wrap(title, TITLE))), fontsize=9, loc="left")
    left.set_ylabel("mean score")
    _curves(right, paper_lines(), "analytic MB")
    right.set_title("paper: mean of eight GLUE tasks", fontsize=9, loc="left")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, frameon=False)
    return figure


def _front(findings: Findings) -> "Figure":
    figure, (axes,) = _figure(7, 4.6)
    _curves(axes, lines(findings, DISK), "MB on disk")
    full = findings.full
    sizes, scores = full.disk.mean(axis=0) / 1e6, full.scores.mean(axis=0)
    best = sorted((sizes[place], scores[place]) for place in np.flatnonzero(findings.front(DISK)[0]))
    if best:
        steps = zip(*best, strict=True)
        axes.step(*steps, where="post", color="#d5d9dd", linewidth=4, zorder=1, label="Pareto front")
    axes.set_ylabel("mean score")
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    return figure


Row = tuple[str, float, tuple[float, float] | None, float | None]


def _bars(axes: "Axes", rows: Sequence[Row], line: float) -> None:
    """Draw a forest plot: name, value and interval of each row, and the paper's value."""
    for place, (_, value, interval, paper) in enumerate(reversed(rows)):
        if interval is not None:
            axes.plot(interval, [place, place], color="#0072b2", linewidth=1.6, solid_capstyle="butt")
        label = "ours, 95 % interval" if place == 0 else None
        axes.plot([value], [place], "o", color="#0072b2", markersize=6, label=label)
        if paper is not None:
            axes.plot([paper], [place], "D", color="#d55e00", markerfacecolor="white", markersize=6,
                      label="paper" if place == 0 else None)  # fmt: skip
    axes.axvline(line, color="#888888", linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, *_ in reversed(rows)])
    axes.set_ylim(-0.6, max(len(rows), 1) - 0.4)
    axes.grid(axis="x", alpha=0.25, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)


def _interactions(findings: Findings) -> "Figure":
    sparsity = findings.sparsity
    figure, (axes,) = _figure(7, 3.4)
    rows = []
    for name, estimate in findings.interactions(sparsity).items():
        known = any(point.sparsity == sparsity for point in published.figure1())
        paper = float(published.interaction(name, sparsity).mean()) if known else None
        rows.append((" × ".join(methods_in(name)), estimate.value, estimate.interval, paper))
    _bars(axes, rows, 0.0)
    axes.set_xlabel(f"points of score (mp at {100 * sparsity:g} %); products are interactions")
    return figure


def _multiplicativity(findings: Findings) -> "Figure":
    figure, (axes,) = _figure(7, 2.6)
    found = findings.multiplicativity(DISK, CONTROL)
    rows = [(name, s.value, s.interval, published.multiplicativity(name)) for name, s in found.items()]
    _bars(axes, rows, 1.0)
    axes.set_xlabel("reduction together / product of reductions (ours on disk, paper analytic)")
    return figure
