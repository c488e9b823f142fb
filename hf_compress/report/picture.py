"""The pictures on the card: the bytes of each part of the model, dense and packed, and the course of training."""

from pathlib import Path
from typing import Any

from hf_compress.extras import extra
from hf_compress.report.phrases import spelt
from hf_compress.report.report import Report
from hf_compress.report.units import human_bytes

PICTURE_NAME, CURVE_NAME = "size.png", "training.png"
COLOURS = ("#7b9acc", "#2f4b7c", "#d45087")


def plot_sizes(report: Report, path: Path) -> None:
    """Draw the bytes of each part of the model, dense and packed, into the PNG `path`.

    Raises:
        MissingExtraError: the extra `plots` is not installed.
    """
    figure = _figure(2.2)
    axes = figure.add_subplot()
    labels = [
        f"packed\n{human_bytes(report.size.packed_bytes)}",
        f"dense fp32\n{human_bytes(report.size.dense_bytes)}",
    ]
    name, unit = ("MB (10⁶ bytes)", 1e6) if report.size.dense_bytes >= 1e6 else ("kB (1000 bytes)", 1e3)
    left = [0.0, 0.0]
    for (part, size), colour in zip(report.size.parts.items(), COLOURS, strict=False):
        widths = [size.packed_bytes / unit, size.dense_bytes / unit]
        axes.barh(labels, widths, left=left, label=part, color=colour, height=0.6)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_xlabel(name)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, ncols=len(report.size.parts), loc="lower left", bbox_to_anchor=(0, 1))
    _save(figure, path)


def plot_curves(report: Report, path: Path) -> None:
    """Draw the curves of the report over the steps of training into the PNG `path`, one axis below another.

    Raises:
        MissingExtraError: the extra `plots` is not installed.
    """
    figure = _figure(0.6 + 1.5 * len(report.curves))
    all_axes = figure.subplots(len(report.curves), sharex=True, squeeze=False)[:, 0]
    for axes, (name, points), colour in zip(all_axes, report.curves.items(), COLOURS, strict=False):
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=colour, linewidth=1.5, marker="o" if len(points) < 20 else "", markersize=3)
        axes.set_ylabel(spelt(name))
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[-1].set_xlabel("optimizer step")
    _save(figure, path)


def _figure(height: float) -> Any:
    """An empty figure for the width of a card, `height` inches high."""
    with extra("plots", "The picture of a card"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(7, height), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    # The PNG names no version of the library, so that the same report gives the same picture.
    figure.savefig(path, metadata={"Software": None})
