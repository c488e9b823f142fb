"""Cells against their controls row by row: what the evaluation rows can tell of each difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hf_compress.report.formulas import Scorer
from hf_compress.report.intervals import bootstrap, ends
from hf_compress.report.metrics import find_metric
from hf_compress.report.outputs import Outputs
from hf_compress.report.tally import Tally
from hf_compress.study.analysis.measurement import Measurement
from hf_compress.study.analysis.panel import Point


@dataclass(frozen=True)
class Paired:
    """The mean difference of a point to its control on one task, over the seeds that both have.

    Args:
        point: the model, combination and sparsity.
        task: the GLUE task.
        seeds: how many seeds.
        on: the evaluation set, "dev" or "extra".
        rows: how many rows it has.
        difference: in points of 100.
        interval: its 95 % interval over rows (paired bootstrap: both models see the same resamples).
    """

    point: Point
    task: str
    seeds: int
    on: str
    rows: int
    difference: float
    interval: tuple[float, float]


def paired(measurements: Sequence[Measurement]) -> list[Paired]:
    """Return the differences to the controls, where the results keep the predictions of the same rows.

    The controls are the dense models after the same training. Metrics that are no means over rows are computed again
    on each resample.
    """
    found = []
    for task in sorted({measurement.task for measurement in measurements}):
        found += _of_task(task, [measurement for measurement in measurements if measurement.task == task])
    return found


def _of_task(task: str, measurements: Sequence[Measurement]) -> list[Paired]:
    kept = {o.key: outputs for o in measurements if (outputs := _outputs(o)) is not None}
    if not kept:
        return []
    reference = next(iter(kept.values()))
    chosen = {o.key: o for o in measurements if o.key in kept and _alike(kept[o.key], reference)}
    scorers, scale = dict[str, Scorer](), 1.0
    for key, o in chosen.items():
        tally = Tally(kept[key], {}, {o.metric: o.score})
        # The predictions must give the score: otherwise they are not those that it was measured on.
        found = find_metric(o.metric, [tally])
        scorer = None if found is None else found[0].scorer(tally)
        if found is not None and scorer is not None:
            scorers[key], scale = scorer, found[1]
    draws = {key: scale * drawn for key, drawn in bootstrap(scorers, reference.rows).items()}
    controls = {(o.model, o.seed): o for o in chosen.values() if _point(o) == _point(o).dense and o.key in draws}
    points: dict[Point, list[tuple[Measurement, Measurement]]] = {}
    for o in chosen.values():
        control = controls.get((o.model, o.seed))
        if o.key in draws and control is not None and control.key != o.key:
            points.setdefault(_point(o), []).append((o, control))
    return [_paired(task, point, pairs, draws, reference.rows) for point, pairs in points.items()]


def _paired(
    task: str,
    point: Point,
    pairs: Sequence[tuple[Measurement, Measurement]],
    draws: Mapping[str, np.ndarray],
    rows: int,
) -> Paired:
    once = float(np.mean([o.score - control.score for o, control in pairs]))
    often = np.mean([draws[o.key] - draws[control.key] for o, control in pairs], axis=0)
    return Paired(point, task, len(pairs), pairs[0][0].on, rows, once, ends(often))


def _outputs(measurement: Measurement) -> Outputs | None:
    """Return the predictions on the set that the score is on."""
    answers = measurement.answers.get(measurement.on)
    return None if answers is None else answers.outputs()


def _alike(one: Outputs, other: Outputs) -> bool:
    return one.kind == other.kind and np.array_equal(one.labels, other.labels)


def _point(measurement: Measurement) -> Point:
    return Point(measurement.model, measurement.combination, measurement.sparsity)
