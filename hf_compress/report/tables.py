"""Reports as tables: one against its dense model and teacher, or several against each other."""

from collections.abc import Sequence

from rich.table import Table

from hf_compress.recipe import Recipe
from hf_compress.report.card import human_bytes
from hf_compress.report.report import Report


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
        dense = (report.dense or {}).get(name)
        table.add_row(
            name,
            "" if dense is None else f"{dense:.4f}",
            *([f"{report.teacher[name]:.4f}" if name in report.teacher else ""] if report.teacher else []),
            f"{score:.4f}",
            "" if dense is None else f"{score - dense:+.4f}",
        )
    table.add_row(
        "zeros (linear)", "", *([""] if report.teacher else []), f"{100 * report.achieved_sparsity:.1f} %", ""
    )
    return table


def recipe_table(recipe: Recipe) -> Table:
    """A table of the options of the methods that are on; those that are not the default are marked."""
    table = Table(title=f"Recipe: {recipe.name}", title_justify="left", caption="* not the default")
    table.add_column("option")
    table.add_column("value", justify="right")
    for method, defaults in Recipe().to_dict().items():
        if getattr(recipe, method).enabled:
            for option, value in recipe.to_dict()[method].items():
                said = " ".join(value) if isinstance(value, list) else str(value)
                table.add_row(f"--{option}", said + (" *" if value != defaults[option] else "  "))
    return table


HEADINGS = ("task", "methods", "MB", "smaller", "to entropy", "analytic MB", "compressed", "dense", "difference")


def report_rows(reports: Sequence[Report]) -> list[tuple[str, ...]]:
    """One row of `HEADINGS` a report, by task and size: bytes on disk, their ratios, and the main metric.

    "Smaller" is against the dense fp32 file, "to entropy" against the order-0 bound of this one's integers, "analytic"
    the paper's formula; the difference of the main metric is in points of a hundred.
    """
    ordered = sorted(reports, key=lambda report: (report.task, -report.size.packed_bytes, report.recipe.name))
    return [
        (
            report.task,
            report.recipe.name,
            f"{report.size.packed_bytes / 1e6:.2f}",
            f"{report.size.ratio:.2f}x",
            f"{report.size.packed_bytes / report.size.entropy_bytes:.3f}x",
            f"{report.size.analytic_bytes / 1e6:.2f}",
            f"{report.main_metric} {100 * report.compressed[report.main_metric]:.2f}",
            *_against_dense(report),
        )
        for report in ordered
    ]


def _against_dense(report: Report) -> tuple[str, str]:
    """The dense model's main score and the compressed one's difference to it, empty where there is no dense model."""
    if report.dense is None:
        return "", ""
    dense = report.dense[report.main_metric]
    return f"{100 * dense:.2f}", f"{100 * (report.compressed[report.main_metric] - dense):+.2f}"


def markdown_table(reports: Sequence[Report]) -> str:
    """The rows of several reports as a Markdown table."""
    lines = [HEADINGS, ("---", "---", *(["---:"] * (len(HEADINGS) - 2))), *report_rows(reports)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def terminal_table(reports: Sequence[Report]) -> Table:
    """The rows of several reports as a table for the terminal."""
    table = Table()
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index < 2 else "right")
    for row in report_rows(reports):
        table.add_row(*row)
    return table
