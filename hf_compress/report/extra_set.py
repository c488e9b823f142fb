"""The second evaluation set of a report, seen as a report of its own, and which of both sets counts."""

from dataclasses import replace

from hf_compress.report.facts import ExtraSet
from hf_compress.report.report import Report


def on_extra(report: Report) -> Report | None:
    """Return `report` as it would be if the extra rows were its evaluation set; None without extra rows.

    Whatever is said, drawn or checked of a report can so be said of its second set.

    Example:
        >>> from hf_compress.report.extra_set import on_extra
        >>> on_extra(report).dataset.eval_rows  # doctest: +SKIP
        10000
    """
    extra = report.extra
    if extra is None:
        return None
    return replace(
        report,
        dataset=replace(
            report.dataset,
            eval_split=extra.split,
            eval_rows=extra.rows,
            eval_part=extra.part,
            eval_split_rows=extra.split_rows,
        ),
        dense=extra.dense,
        teacher=None,
        compressed=extra.compressed,
        predictions=extra.predictions,
        queries=None,
        intervals=extra.intervals,
        comparison=extra.comparison,
        without_interval=extra.without_interval,
        control=extra.control,
        without_control=extra.without_control,
        extra=None,
        max_drop=None,
        verdict=None,
        reasons=[],
    )


def extra_of(seen: Report) -> ExtraSet:
    """Return the extra set that `on_extra` shows as the report `seen`."""
    dataset = seen.dataset
    return ExtraSet(
        split=dataset.eval_split,
        rows=dataset.eval_rows,
        part=dataset.eval_part,
        split_rows=dataset.eval_split_rows,
        dense=seen.dense,
        compressed=seen.compressed,
        predictions=seen.predictions,
        intervals=seen.intervals,
        comparison=seen.comparison,
        without_interval=seen.without_interval,
        control=seen.control,
        without_control=seen.without_control,
    )


def sharper(report: Report) -> Report:
    """Return the report of the set that counts: that with more rows, if the dense model was measured on it.

    Example:
        >>> from hf_compress.report.extra_set import sharper
        >>> sharper(report).dataset.eval_split  # doctest: +SKIP
        'train'
    """
    extra = on_extra(report)
    if extra is None or (extra.dense is None and report.dense is not None):
        return report
    return extra if extra.dataset.eval_rows > report.dataset.eval_rows else report
