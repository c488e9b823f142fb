"""Tables of reports: one report against its dense model and teacher, or several against each other."""

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from hf_compress.recipe import Recipe
from hf_compress.report.extra_set import on_extra, sharper
from hf_compress.report.intervals import Interval
from hf_compress.report.latency import Latency
from hf_compress.report.markdown import one_line, text
from hf_compress.report.report import Report
from hf_compress.report.units import human_bytes


def comparison_table(report: Report) -> Table:
    """A table of bytes on disk and of all scores of the dense model, the teacher, the control and the reloaded model.

    The scores on the further rows follow, if the report has a second evaluation set.
    """
    table = Table(title=_plain(f"{report.task}: {report.recipe.name}"), title_justify="left")
    extra = on_extra(report)
    sets = {"": report} | ({} if extra is None else {f", {extra.dataset.eval_rows:,} further rows": extra})
    controlled = any(seen.control for seen in sets.values())
    between = [*(["teacher"] if report.teacher else []), *(["control"] if controlled else [])]
    table.add_column("")
    for heading in ("dense", *between, "compressed", "compressed to dense", *(["to control"] if controlled else [])):
        table.add_column(heading, justify="right")
    size, blank, end = report.size, [""] * len(between), [""] * controlled
    smaller = f"{size.ratio:.1f}x smaller"
    table.add_row(
        "weights on disk", human_bytes(size.dense_bytes), *blank, human_bytes(size.packed_bytes), smaller, *end
    )
    for where, seen in sets.items():
        others = {"teacher": seen.teacher, "control": None if seen.control is None else seen.control.scores}
        for name, score in seen.compressed.items():
            dense, control = (seen.dense or {}).get(name), (others["control"] or {}).get(name)
            table.add_row(
                _plain(f"{name}{where}"),
                _number(dense),
                *(_number((others[model] or {}).get(name)) for model in between),
                _number(score),
                "" if dense is None else f"{score - dense:+.4f}",
                *(["" if control is None else f"{score - control:+.4f}"] if controlled else []),
            )
    table.add_row("zeros (linear)", "", *blank, f"{100 * report.achieved_sparsity:.1f} %", "", *end)
    if report.steps is not None:
        table.add_row("bits per weight", "32", *blank, f"{report.steps.bits_per_weight:.2f}", "", *end)
    return table


def _number(score: float | None) -> str:
    return "" if score is None else f"{score:.4f}"


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


HEADINGS = (
    *("task", "methods", "MB", "smaller", "to entropy", "analytic MB"),
    *("compressed", "dense", "difference", "to control", "rows"),
)


def report_rows(reports: Sequence[Report]) -> list[tuple[str, ...]]:
    """One row of `HEADINGS` per report, ordered by task and size.

    "Smaller" compares with the dense fp32 file, and "to entropy" with the order-0 bound of the packed integers.
    "Analytic" is the formula of the paper. Scores are those of the evaluation set with more rows. Differences of the
    main metric are in points of one hundredth, with their 95 % intervals: to the dense model and to the control.
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
            *_compared(sharper(report)),
        )
        for report in ordered
    ]


def _compared(report: Report) -> tuple[str, str, str, str, str]:
    """The main scores, the differences to the dense model and to the control, and how many rows they are of."""
    metric = report.main_metric
    score, control = report.compressed[metric], report.control
    dense = None if report.dense is None else report.dense[metric]
    return (
        f"{metric} {100 * score:.2f}",
        "" if dense is None else f"{100 * dense:.2f}",
        "" if dense is None else _points(score - dense, report.comparison.get(metric)),
        "" if control is None else _points(score - control.scores[metric], control.comparison.get(metric)),
        f"{report.dataset.eval_rows:,}",
    )


def _points(difference: float, interval: Interval | None) -> str:
    """A difference of shares in points, with its interval if it is known."""
    within = "" if interval is None else f" ({100 * interval.low:+.2f} to {100 * interval.high:+.2f})"
    return f"{100 * difference:+.2f}{within}"


def markdown_table(reports: Sequence[Report]) -> str:
    """The rows of several reports as a Markdown table, without columns that are empty for all."""
    headings, rows = _filled(reports)
    lines = [headings, ("---", "---", *(["---:"] * (len(headings) - 2))), *rows]
    return "\n".join("| " + " | ".join(map(text, line)) + " |" for line in lines)


def terminal_table(reports: Sequence[Report]) -> Table:
    """The rows of several reports as a table for the terminal, without columns that are empty for all."""
    table, (headings, rows) = Table(), _filled(reports)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index < 2 else "right")
    for row in rows:
        table.add_row(*map(_plain, row))
    return table


def _filled(reports: Sequence[Report]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The headings and rows of `report_rows`, without columns that are empty for all reports."""
    rows = report_rows(reports)
    kept = [index for index in range(len(HEADINGS)) if any(row[index] for row in rows)]
    return tuple(HEADINGS[index] for index in kept), [tuple(row[index] for index in kept) for row in rows]


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
