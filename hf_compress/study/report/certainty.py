"""The tables of how certain a score is: between seeds, and from the rows that it is measured on."""

import numpy as np

from hf_compress.study.analysis.findings import Findings
from hf_compress.study.analysis.measurement import DEV, EXTRA
from hf_compress.study.analysis.panel import FEWEST_REPEATS
from hf_compress.study.report.tables import Column, Table, spread

SETS = (DEV, EXTRA)
SET_WORDS = {DEV: "dev split", EXTRA: "further rows"}


def paired(findings: Findings) -> Table:
    """Return the differences to the controls with their intervals over rows."""
    rows = [
        {
            "task": one.task,
            "combination": one.point.combination,
            "model": one.point.model,
            "sparsity": one.point.sparsity,
            "seeds": one.seeds,
            "on": SET_WORDS[one.on],
            "rows": one.rows,
        }
        | spread("difference", one.difference, one.interval)
        for one in findings.paired
    ]
    columns = (
        Column("task", "task"), Column("combination", "combination"), Column("model", "model"),
        Column("sparsity", "sparsity", ".0%"), Column("seeds", "seeds", "d"), Column("on", "measured on"),
        Column("rows", "rows", ",d"), Column("difference", "against the control", "+.2f", interval=True),
    )  # fmt: skip
    note = (
        "The difference of each cell to its control on the same rows, in points, as the mean over seeds. Brackets "
        "give 95 % intervals over rows: a paired bootstrap, in which both models see the same resamples. They do not "
        "include that another seed gives another difference. Results without predictions of rows are left out."
    )
    if not rows:
        note = (
            "No result keeps the predictions of its rows beside those of its control, so none can be compared by rows."
        )
    return Table("paired", "What can the rows tell?", note, columns, rows)


def noise(findings: Findings) -> Table:
    """Return the table of how much a score changes between seeds."""
    whole = findings.whole
    rows = []
    for place, task in enumerate(whole.tasks):
        measurements = [measurement for measurement in findings.measurements if measurement.task == task]
        residuals, enough = whole.residuals[place], whole.freedom[place] >= FEWEST_REPEATS
        errors = {
            kind: [error for o in measurements if (error := getattr(o, f"{kind}_error")) is not None] for kind in SETS
        }
        rows.append(
            {
                "task": task,
                "metric": measurements[0].metric,
                "cells": len(measurements),
                "rows": measurements[0].rows,
                "on": SET_WORDS[measurements[0].on],
                "deviation": f"{np.sqrt(np.mean(residuals**2)):.2f}" if enough else "not enough seeds",
                "freedom": whole.freedom[place],
            }
            | {f"{kind}_error": float(np.mean(errors[kind])) if errors[kind] else None for kind in SETS}
        )
    columns = (
        Column("task", "task"), Column("metric", "metric"), Column("cells", "cells", "d"),
        Column("on", "measured on"), Column("rows", "rows", ",d"),
        Column("deviation", "standard deviation between seeds (points)"),
        Column("freedom", "degrees of freedom", "d"), Column("dev_error", "standard error on the dev split", ".2f"),
        Column("extra_error", "on further rows", ".2f"),
    )  # fmt: skip
    note = (
        "The standard deviation of the score between seeds, pooled over the cells with several seeds. The last "
        "columns are the standard errors of a score from the sampling of its rows, on each evaluation set. All "
        "tables and plots use the set that is named. All cells share the rows, so differences are more certain than "
        "this: see *What can the rows tell?*. No other interval in this report includes it."
    )
    return Table("noise", "How certain is one run?", note, columns, rows)
