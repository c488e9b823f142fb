"""The compressed model against the dense one, row by row: the intervals of a report, and its file of predictions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import Trainer

from hf_compress.models.heads import bare
from hf_compress.report.formulas import Numbers, Scorer
from hf_compress.report.intervals import DRAWS, LEVEL, Interval, bootstrap, ends, mcnemar, wilson
from hf_compress.report.metrics import ACCURACY, Metric, find_metric, mean_of
from hf_compress.report.outputs import Outputs, UnreadableError
from hf_compress.report.predictions import COMPRESSED, DENSE, Recorder, row_numbers, save_predictions
from hf_compress.report.report import Report
from hf_compress.report.tally import Tally, hits

BOOTSTRAP = f"bootstrap, {DRAWS:,} resamples of rows"
WILSON = "Wilson score interval"
OTHER_ROWS = "The dense model was not evaluated on the same rows in the same order."
NOT_RECORDED = "The scores of the dense model were given to `finish`, not measured in this run."
NOT_REPRODUCED = "`{name}` could not be computed again from the predictions of the rows."
ONE_ROW = "One row allows no interval."


def with_predictions(trainer: Trainer, report: Report, recorder: Recorder, rows: Any, folder: str | Path) -> Report:
    """Write the predictions of each row into `folder`, and return `report` with the intervals that they allow.

    Args:
        trainer: the one that evaluated.
        report: of the model in `folder`.
        recorder: what the compressed model predicted, and the dense one if it was evaluated.
        rows: what they were evaluated on.
        folder: that of the report.

    Example:
        >>> from hf_compress.report.comparing import with_predictions
        >>> report = with_predictions(trainer, report, recorder, trainer.eval_dataset, folder)  # doctest: +SKIP
        >>> report.comparison["accuracy"].low  # doctest: +SKIP
        -0.008
    """
    try:
        if COMPRESSED not in recorder.outputs:
            raise UnreadableError(recorder.obstacles.get(COMPRESSED, NOT_REPRODUCED))
        compressed = recorder.outputs[COMPRESSED]
        numbers = row_numbers(trainer, rows, compressed, recorder.rows)
    except UnreadableError as error:
        return _without_intervals(report, str(error))
    dense, obstacle = recorder.outputs.get(DENSE), recorder.obstacles.get(DENSE, NOT_RECORDED)
    if dense is not None and not are_paired(dense, compressed):
        dense, obstacle = None, OTHER_ROWS
    outputs = {COMPRESSED: compressed} if dense is None else {DENSE: dense, COMPRESSED: compressed}
    report = replace(report, predictions=save_predictions(folder, numbers, outputs))
    names = {int(number): name for number, name in getattr(bare(trainer.model).config, "id2label", {}).items()}
    return with_intervals(report, compressed, dense, names, obstacle)


def _without_intervals(report: Report, reason: str) -> Report:
    return replace(report, intervals={}, comparison={}, without_interval=dict.fromkeys(report.compressed, reason))


def are_paired(one: Outputs, other: Outputs) -> bool:
    """Whether both are outputs for the same rows in the same order, as far as labels tell."""
    same = one.kind == other.kind and np.array_equal(one.labels, other.labels)
    return same and (one.lengths is None or np.array_equal(one.lengths, other.lengths))  # type: ignore[arg-type]


def with_intervals(
    report: Report, compressed: Outputs, dense: Outputs | None, names: Mapping[int, str], obstacle: str = NOT_RECORDED
) -> Report:
    """`report` with an interval of each score of the compressed model, and of its difference to the dense model.

    Args:
        report: with the scores that the script computed.
        compressed: the outputs of the compressed model.
        dense: those of the dense model, for the same rows; None if there are none.
        names: of the classes, by number.
        obstacle: why there are no outputs of the dense model, in a sentence.
    """
    if compressed.rows < 2:
        return _without_intervals(report, ONE_ROW)
    tally = Tally(compressed, names, report.compressed)
    other = None if dense is None or report.dense is None else Tally(dense, names, report.dense)
    metrics = _metrics(tally, other)
    compared = [_Compared(name, *metric, tally, None) for name, metric in metrics.items()]
    if other is not None:
        both = {name: metric for name, metric in metrics.items() if _fits(name, metric, other)}
        compared = [replace(one, dense=other if one.name in both else None) for one in compared]
        obstacle = ""
    draws = bootstrap({key: scorer for one in compared for key, scorer in one.scorers().items()}, compressed.rows)
    without = {name: NOT_REPRODUCED.format(name=name) for name in report.compressed if name not in metrics}
    for one in compared:
        if one.dense is None and one.name in (report.dense or {}):
            reason = obstacle or NOT_REPRODUCED.format(name=one.name)
            without[one.name] = f"The difference to the dense model has no interval. {reason}"
    return replace(
        report,
        intervals={one.name: one.interval(draws) for one in compared},
        comparison={one.name: one.difference(draws) for one in compared if one.dense is not None},
        without_interval=without,
    )


def _metrics(tally: Tally, other: Tally | None) -> dict[str, tuple[Metric, float]]:
    """The metrics that reproduce the reported scores, and their scales; of both models where one metric does."""
    found = {}
    for name in tally.scores:
        both = [tally, other] if other is not None and name in other.scores else [tally]
        metric = find_metric(name, both) or find_metric(name, [tally])
        if metric is not None:
            found[name] = metric
    for name in tally.scores:
        parts = [metric for other_name, metric in found.items() if not other_name.endswith("loss")]
        mean = mean_of(parts)
        if name not in found and "combined" in name and parts and _fits(name, (mean, 1.0), tally):
            found[name] = mean, 1.0
    return {name: found[name] for name in tally.scores if name in found}


def _fits(name: str, metric: tuple[Metric, float], tally: Tally) -> bool:
    return name in tally.scores and metric[0].reproduces(name, tally, metric[1])


@dataclass(frozen=True)
class _Compared:
    """A metric of the compressed model, and of the dense one if it can be paired."""

    name: str
    metric: Metric
    scale: float
    compressed: Tally
    dense: Tally | None

    def scorers(self) -> dict[tuple[str, str], Scorer]:
        tallies = {COMPRESSED: self.compressed} | ({} if self.dense is None else {DENSE: self.dense})
        scorers = {model: self.metric.scorer(tally) for model, tally in tallies.items()}
        return {(self.name, model): scorer for model, scorer in scorers.items() if scorer is not None}

    def interval(self, draws: Mapping[tuple[str, str], Numbers]) -> Interval:
        if self._is_single_accuracy:
            right = hits(self.compressed.outputs)
            low, high = wilson(int(right.sum()), len(right))
            method = WILSON
        else:
            (low, high), method = ends(draws[self.name, COMPRESSED]), BOOTSTRAP
        return self._interval(self.compressed.scores[self.name], self.scale * low, self.scale * high, method)

    def difference(self, draws: Mapping[tuple[str, str], Numbers]) -> Interval:
        assert self.dense is not None
        low, high = ends(draws[self.name, COMPRESSED] - draws[self.name, DENSE])
        value = self.compressed.scores[self.name] - self.dense.scores[self.name]
        interval = self._interval(value, self.scale * low, self.scale * high, f"paired {BOOTSTRAP}")
        if not self._is_single_accuracy:
            return interval
        compressed, dense = hits(self.compressed.outputs), hits(self.dense.outputs)
        return replace(interval, p_value=mcnemar(int((compressed > dense).sum()), int((compressed < dense).sum())))

    @property
    def _is_single_accuracy(self) -> bool:
        """Whether each row is right or wrong and the metric is their share, so that exact methods apply."""
        return self.metric is ACCURACY and self.compressed.outputs.lengths is None

    def _interval(self, value: float, low: float, high: float, method: str) -> Interval:
        outputs = self.compressed.outputs
        units, count = outputs.units, len(outputs.labels)
        if self.metric.counts_entities and self.compressed.entities is not None:
            units, count = "entities", int(self.compressed.entities[:, 2].sum())
        return Interval(value, low, high, LEVEL, method, units, count)
