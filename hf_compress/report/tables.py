"""Tables of reports: one report against its dense model and teacher, or several against each other."""

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from hf_compress.recipe import Recipe
from hf_compress.report.latency import Latency
from hf_compress.report.markdown import one_line, text
from hf_compress.report.report import Report
from hf_compress.report.units import human_bytes


def comparison_table(report: Report) -> Table:
    """A table of bytes on disk and of all scores of the dense model, the teacher and the reloaded model."""
    table = Table(title=_plain(f"{report.task}: {report.recipe.name}"), title_justify="left")
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
            _plain(name),
            "" if dense is None else f"{dense:.4f}",
            *([f"{report.teacher[name]:.4f}" if name in report.teacher else ""] if report.teacher else []),
            f"{score:.4f}",
            "" if dense is None else f"{score - dense:+.4f}",
        )
    table.add_row(
        "zeros (linear)", "", *([""] if report.teacher else []), f"{100 * report.achieved_sparsity:.1f} %", ""
    )
    if report.steps is not None:
        bits = f"{report.steps.bits_per_weight:.2f}"
        table.add_row("bits per weight", "32", *([""] if report.teacher else []), bits, "")
    return table


def recipe_table(recipe: Recipe) -> Table:
    """A table of the options of the methods that are on. A star marks options that are not the default."""
    table = Table(title=_plain(f"Recipe: {recipe.name}"), title_justify="left", caption="* not the default")
    table.add_column("option")
    table.add_column("value", justify="right")
    for method, defaults in Recipe().to_dict().items():
        if getattr(recipe, method).enabled:
            for option, value in recipe.to_dict()[method].items():
                said = " ".join(value) if isinstance(value, list) else str(value)
                table.add_row(f"--{option}", _plain(said) + (" *" if value != defaults[option] else "  "))
    return table


HEADINGS = ("task", "methods", "MB", "smaller", "to entropy", "analytic MB", "compressed", "dense", "difference")


def report_rows(reports: Sequence[Report]) -> list[tuple[str, ...]]:
    """One row of `HEADINGS` per report, ordered by task and size.

    "Smaller" compares with the dense fp32 file, and "to entropy" with the order-0 bound of the packed integers.
    "Analytic" is the formula of the paper. The difference of the main metric is in points of one hundredth.
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
    """The dense model's main score and the difference of the compressed one to it; empty without a dense model."""
    if report.dense is None:
        return "", ""
    dense = report.dense[report.main_metric]
    return f"{100 * dense:.2f}", f"{100 * (report.compressed[report.main_metric] - dense):+.2f}"


def markdown_table(reports: Sequence[Report]) -> str:
    """The rows of several reports as a Markdown table."""
    lines = [HEADINGS, ("---", "---", *(["---:"] * (len(HEADINGS) - 2))), *report_rows(reports)]
    return "\n".join("| " + " | ".join(map(text, line)) + " |" for line in lines)


def terminal_table(reports: Sequence[Report]) -> Table:
    """The rows of several reports as a table for the terminal."""
    table = Table()
    for index, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if index < 2 else "right")
    for row in report_rows(reports):
        table.add_row(*map(_plain, row))
    return table


def latency_table(latency: Latency) -> Table:
    """A table of `latency` for the terminal.

    Example:
        >>> from rich.console import Console
        >>> from hf_compress.report import bench, latency_table
        >>> latency = bench(["run/compressed"], batch_sizes=[1], rounds=5)  # doctest: +SKIP
        >>> Console().print(latency_table(latency))  # doctest: +SKIP
    """
    table = Table(
        box=box.SIMPLE,
        caption=_plain(
            f"Median of {latency.rounds} rounds in turns and their middle half; speed-up over {latency.baseline} with "
            f"its 95 % interval. {latency.hardware}, {latency.threads} threads."
        ),
        caption_justify="left",
    )
    table.add_column("variant", overflow="fold")
    for heading in ("file", "load s", "batch", "ms", "middle half", "rows/s", "speed-up", "95 %"):
        table.add_column(heading, justify="right", no_wrap=True)
    facts = {variant.name: variant for variant in latency.variants}
    shape = None
    for timing in latency.timings:
        if shape not in (None, timing.shape):
            table.add_section()
        shape, variant = timing.shape, facts[timing.variant]
        low, high = (1e3 * value for value in timing.quartiles)
        least, most = timing.speedup.interval
        table.add_row(
            _plain(timing.variant),
            human_bytes(variant.file_bytes),
            f"{variant.load_seconds:.2f}",
            f"{timing.batch_size}" if timing.length is None else f"{timing.batch_size} x {timing.length}",
            f"{1e3 * timing.seconds:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{timing.throughput:.1f}",
            f"{timing.speedup.ratio:.2f}",
            f"{least:.2f} to {most:.2f}",
        )
    return table


def _plain(words: str) -> str:
    """The words for a table on the terminal: on one line, and without markup or control characters."""
    return escape(one_line(words))
