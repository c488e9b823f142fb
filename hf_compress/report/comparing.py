"""The compressed model against the dense one and the control, row by row: intervals, and the file of predictions."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import Trainer

from hf_compress.models.heads import bare
from hf_compress.report.facts import Control
from hf_compress.report.formulas import Numbers, Scorer
from hf_compress.report.intervals import DRAWS, LEVEL, Interval, bootstrap, ends, mcnemar, wilson
from hf_compress.report.metrics import ACCURACY, Metric, find_metric, mean_of
from hf_compress.report.outputs import Outputs, UnreadableError
from hf_compress.report.predictions import (
    COMPRESSED,
    CONTROL,
    DENSE,
    PREDICTIONS_NAME,
    Recorder,
    row_numbers,
    save_predictions,
)
from hf_compress.report.report import Report
from hf_compress.report.tally import Tally, hits

BOOTSTRAP = f"bootstrap, {DRAWS:,} resamples of rows"
WILSON = "Wilson score interval"
OTHER_ROWS = "The dense model was not evaluated on the same rows in the same order."
NOT_RECORDED = "The scores of the dense model were given to `finish`, not measured in this run."
NOT_REPRODUCED = "`{name}` could not be computed again from the predictions of the rows."
ONE_ROW = "One row allows no interval."
OTHER_CONTROL = "The control was not measured on the same rows."


@dataclass(frozen=True)
class ControlRows:
    """What a control predicted for the rows of one evaluation set.

    Args:
        facts: the control, with its scores on these rows.
        rows: the index of each row in its split.
        outputs: of the control.
    """

    facts: Control
    rows: NDArray[Any]
    outputs: Outputs


def with_predictions(
    trainer: Trainer,
    report: Report,
    recorder: Recorder,
    rows: Any,
    folder: str | Path,
    *,
    control: ControlRows | None = None,
    name: str = PREDICTIONS_NAME,
) -> Report:
    """Write the predictions of each row into `folder`, and return `report` with the intervals that they allow.

    Args:
        trainer: the one that evaluated.
        report: of the model in `folder`.
        recorder: what the compressed model predicted, and the dense one if it was evaluated.
        rows: what they were evaluated on.
        folder: that of the report.
        control: what the control predicted. It is left out, with the reason, if it saw other rows.
        name: of the file with the predictions.

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
        numbers = row_numbers(trainer, rows, compressed, recorder.rows, ordered=COMPRESSED in recorder.ordered)
    except UnreadableError as error:
        return replace(_without_intervals(report, str(error)), without_control=str(error) if control else None)
    dense, obstacle = recorder.outputs.get(DENSE), recorder.obstacles.get(DENSE, NOT_RECORDED)
    if dense is not None and not are_paired(dense, compressed):
        dense, obstacle = None, OTHER_ROWS
    if control is not None:
        alike = np.array_equal(control.rows, numbers) and are_paired(control.outputs, compressed)
        report = replace(report, control=control.facts) if alike else replace(report, without_control=OTHER_CONTROL)
    other = None if control is None or report.control is None else control.outputs
    models = {DENSE: dense, CONTROL: other, COMPRESSED: compressed}
    kept = save_predictions(folder, numbers, {model: one for model, one in models.items() if one is not None}, name)
    names = {int(number): name for number, name in getattr(bare(trainer.model).config, "id2label", {}).items()}
    return with_intervals(replace(report, predictions=kept), compressed, dense, names, obstacle, control=other)


def _without_intervals(report: Report, reason: str) -> Report:
    control = None if report.control is None else replace(report.control, comparison={})
    without = dict.fromkeys(report.compressed, reason)
    return replace(report, intervals={}, comparison={}, without_interval=without, control=control)


def are_paired(one: Outputs, other: Outputs) -> bool:
    """Whether both are outputs for the same rows in the same order, as far as labels tell.

    Labels that are numbers may differ by the rounding of a file, which keeps 32 bits.
    """
    if one.kind != other.kind or one.labels.shape != other.labels.shape:
        return False
    same = np.allclose(one.labels, other.labels, rtol=1e-5, atol=1e-6)
    return bool(same) and (one.lengths is None or np.array_equal(one.lengths, other.lengths))  # type: ignore[arg-type]


def with_intervals(
    report: Report,
    compressed: Outputs,
    dense: Outputs | None,
    names: Mapping[int, str],
    obstacle: str = NOT_RECORDED,
    *,
    control: Outputs | None = None,
) -> Report:
    """`report` with an interval of each score of the compressed model, and of its differences.

    All models see the same resamples of the rows, so the differences to the dense model and to the control are paired.

    Args:
        report: with the scores that the script computed.
        compressed: the outputs of the compressed model.
        dense: those of the dense model, for the same rows; None if there are none.
        names: of the classes, by number.
        obstacle: why there are no outputs of the dense model, in a sentence.
        control: the outputs of the control of `report`, for the same rows; None if there are none.
    """
    if compressed.rows < 2:
        return _without_intervals(report, ONE_ROW)
    tally = Tally(compressed, names, report.compressed)
    others = dict[str, Tally]()
    if dense is not None and report.dense is not None:
        others[DENSE] = Tally(dense, names, report.dense)
    if control is not None and report.control is not None:
        others[CONTROL] = Tally(control, names, report.control.scores)
    metrics = _metrics(tally, others)
    compared = [
        _Compared(name, *metric, tally, {model: one for model, one in others.items() if _fits(name, metric, one)})
        for name, metric in metrics.items()
    ]
    if DENSE in others:
        obstacle = ""
    draws = bootstrap({key: scorer for one in compared for key, scorer in one.scorers().items()}, compressed.rows)
    without = {name: NOT_REPRODUCED.format(name=name) for name in report.compressed if name not in metrics}
    for one in compared:
        if DENSE not in one.others and one.name in (report.dense or {}):
            reason = obstacle or NOT_REPRODUCED.format(name=one.name)
            without[one.name] = f"The difference to the dense model has no interval. {reason}"
    differences = {
        model: {one.name: one.difference(model, draws) for one in compared if model in one.others}
        for model in (DENSE, CONTROL)
    }
    return replace(
        report,
        intervals={one.name: one.interval(draws) for one in compared},
        comparison=differences[DENSE],
        without_interval=without,
        control=None if report.control is None else replace(report.control, comparison=differences[CONTROL]),
    )


def _metrics(tally: Tally, others: Mapping[str, Tally]) -> dict[str, tuple[Metric, float]]:
    """The metrics that reproduce the reported scores, and their scales; of all models where one metric does."""
    found = {}
    for name in tally.scores:
        known = {model: other for model, other in others.items() if name in other.scores}
        dense = [known[DENSE]] if DENSE in known else []
        for models in ([tally, *known.values()], [tally, *dense], [tally]):
            metric = find_metric(name, models)
            if metric is not None:
                found[name] = metric
                break
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
    """A metric of the compressed model, and of the other models that can be paired with it."""

    name: str
    metric: Metric
    scale: float
    compressed: Tally
    others: Mapping[str, Tally]

    def scorers(self) -> dict[tuple[str, str], Scorer]:
        tallies = {COMPRESSED: self.compressed, **self.others}
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

    def difference(self, model: str, draws: Mapping[tuple[str, str], Numbers]) -> Interval:
        other = self.others[model]
        low, high = ends(draws[self.name, COMPRESSED] - draws[self.name, model])
        value = self.compressed.scores[self.name] - other.scores[self.name]
        interval = self._interval(value, self.scale * low, self.scale * high, f"paired {BOOTSTRAP}")
        if not self._is_single_accuracy:
            return interval
        one, two = hits(self.compressed.outputs), hits(other.outputs)
        return replace(interval, p_value=mcnemar(int((one > two).sum()), int((one < two).sum())))

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
