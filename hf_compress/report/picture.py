"""The picture on the card: the bytes of each part of the model, dense and packed."""

from pathlib import Path

from hf_compress.extras import extra
from hf_compress.report.report import Report
from hf_compress.report.units import human_bytes

PICTURE_NAME = "size.png"
COLOURS = ("#7b9acc", "#2f4b7c", "#d45087")


def plot(report: Report, path: Path) -> None:
    """Draw the bytes of each part of the model, dense and packed, into the PNG `path`.

    Raises:
        MissingExtraError: the extra `plots` is not installed.
    """
    with extra("plots", "The picture of a card"):
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.2), layout="constrained", dpi=150)
    FigureCanvasAgg(figure)
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
    # The PNG names no version of the library, so that the same report gives the same picture.
    figure.savefig(path, metadata={"Software": None})
