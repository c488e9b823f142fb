"""A `Report` as a table for the terminal: dense model, teacher and compressed model side by side."""

from rich.table import Table

from hf_compress.card import human_bytes
from hf_compress.report import Report


def comparison_table(report: Report) -> Table:
    """A table of bytes on disk and of every score: of the dense model, any teacher and the reloaded artefact."""
    table = Table(title=f"{report.task}: {report.recipe.name}", title_justify="left")
    table.add_column("")
    for heading in ("dense", *(["teacher"] if report.teacher else []), "compressed", "compressed to dense"):
        table.add_column(heading, justify="right")
    size = report.size
    table.add_row(
        "weights on disk",
        human_bytes(size.dense_bytes),
        *([""] if report.teacher else []),
        human_bytes(size.packed_bytes),
        f"{size.ratio:.1f}x smaller",
    )
    for name, score in report.compressed.items():
        dense = report.dense.get(name)
        table.add_row(
            name,
            "" if dense is None else f"{dense:.4f}",
            *([f"{report.teacher[name]:.4f}" if name in report.teacher else ""] if report.teacher else []),
            f"{score:.4f}",
            "" if dense is None else f"{score - dense:+.4f}",
        )
    table.add_row(
        "zeros in linear layers", "", *([""] if report.teacher else []), f"{100 * report.achieved_sparsity:.1f} %", ""
    )
    return table
