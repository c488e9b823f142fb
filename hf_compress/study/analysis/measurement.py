"""One cell of a study as numbers: its score on each evaluation set, with standard errors, and its sizes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from hf_compress.study.grid.answers import Answers

DEV, EXTRA = "dev", "extra"
NORMAL = 1.959964  # Half the width of a 95 % interval, in standard errors.


@dataclass(frozen=True)
class Measurement:
    """The measurements of one cell. Scores are in points of 100; sizes are in bytes.

    Args:
        key: key of the cell.
        family: the checkpoint that the model was cut from.
        model: the compressed architecture; the family with its number of layers if it was cut.
        layers: number of layers; None for all.
        task: the GLUE task.
        combination: one of `COMBINATIONS`.
        sparsity: 0 without pruning.
        seed: seed of the training.
        teacher: name of the teacher, or None.
        metric: the metric of all scores.
        score: score of the compressed file after loading.
        start: score of the dense model that training started from.
        teacher_score: score of the teacher.
        dense_bytes: fp32 file of the same architecture.
        packed_bytes: compressed file.
        analytic_bytes: size by the paper's formula.
        entropy_bytes: entropy of the stored values.
        rows: evaluation rows that `score` is measured on.
        seconds: time of the cell.
        error: standard error of `score`, from the sampling of its rows; None if it is not known.
        on: the evaluation set of `score` and `start`: "extra" if every cell of the task has that set, else "dev".
        dev_score: score on the dev split.
        dev_error: its standard error.
        dev_rows: its rows.
        extra_score: score on the further rows; None without them.
        extra_error: its standard error.
        extra_rows: their number.
        extra_start: score there of the dense model that training started from. Not in the table of cells.
        answers: what the model predicts for each row, by evaluation set. Not in the table of cells.

    Example:
        >>> from hf_compress.study.analysis import read_measurements
        >>> from hf_compress.study.report.advice import shipped
        >>> first = read_measurements(shipped())[0]
        >>> first.model, first.task, first.combination, first.sparsity
        ('minilm-1', 'cola', 'dense', 0.0)
    """

    key: str
    family: str
    model: str
    layers: int | None
    task: str
    combination: str
    sparsity: float
    seed: int
    teacher: str | None
    metric: str
    score: float
    start: float | None
    teacher_score: float | None
    dense_bytes: int
    packed_bytes: int
    analytic_bytes: int
    entropy_bytes: int
    rows: int
    seconds: float
    error: float | None = None
    on: str = DEV
    dev_score: float | None = None
    dev_error: float | None = None
    dev_rows: int | None = None
    extra_score: float | None = None
    extra_error: float | None = None
    extra_rows: int | None = None
    extra_start: float | None = None
    answers: Mapping[str, Answers] = field(default_factory=dict, compare=False, repr=False)


# The columns of the table of cells.
FIELDS = tuple(field.name for field in fields(Measurement) if field.name not in ("extra_start", "answers"))
OPTIONAL = (
    *("layers", "teacher", "start", "teacher_score", "error"),
    *("dev_score", "dev_error", "dev_rows", "extra_score", "extra_error", "extra_rows"),
)


def to_row(measurement: Measurement) -> dict[str, Any]:
    """Return the measurement as a row of the table of cells."""
    return {name: getattr(measurement, name) for name in FIELDS}


def standard_error(report: Mapping[str, Any], name: str, score: float, rows: int) -> float | None:
    """Return the standard error in points of a score, from the sampling of its rows; None if it is not known.

    It is a half of the 95 % interval in the report over 1.96. An accuracy without an interval has the closed form.

    Example:
        >>> from hf_compress.study.analysis.measurements import standard_error
        >>> round(standard_error({}, "accuracy", 90.0, 10_000), 3)
        0.3
    """
    interval = report.get("intervals", {}).get(name)
    if isinstance(interval, dict) and {"low", "high"} <= interval.keys():
        return 100 * float(interval["high"] - interval["low"]) / (2 * NORMAL)
    share = min(max(score / 100, 0.0), 1.0)
    return 100 * math.sqrt(share * (1 - share) / max(rows, 1)) if name == "accuracy" else None


def on_one_set(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Return the measurements with the scores of one evaluation set for each task: the extra set if all have it."""
    lacking = {measurement.task for measurement in measurements if measurement.extra_score is None}
    return [_on(measurement, DEV if measurement.task in lacking else EXTRA) for measurement in measurements]


def _on(measurement: Measurement, on: str) -> Measurement:
    """Return the measurement with the scores of the set `on`."""
    if measurement.on == on:
        return measurement
    score, error, rows = (getattr(measurement, f"{on}_{name}") for name in ("score", "error", "rows"))
    start = measurement.extra_start if on == EXTRA else None
    return replace(measurement, on=on, score=score, error=error, rows=rows, start=start, teacher_score=None)
