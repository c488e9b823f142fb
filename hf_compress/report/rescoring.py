"""Scores computed again from the predictions of rows that a folder keeps, and from new ones of the same rows."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hf_compress.report.agreement import DIFFERS, TRUE, UNCHECKED, Check
from hf_compress.report.comparing import with_intervals
from hf_compress.report.extra_set import on_extra
from hf_compress.report.gate import judged
from hf_compress.report.metrics import METRICS, Metric, find_metric
from hf_compress.report.outputs import Kind, Outputs
from hf_compress.report.predictions import COMPRESSED, CONTROL, DENSE, KIND, PREDICTIONS_NAME, read_predictions
from hf_compress.report.queries import Queries, stored_queries, with_query_intervals
from hf_compress.report.report import Report
from hf_compress.report.scores import AGAINST_DENSE
from hf_compress.report.tally import Tally

# Logits are kept in 16 bits and numbers in 32, so what is computed from them is less exact.
LOSS_TOLERANCE, TOLERANCE = 1e-2, 1e-4
LARGEST = 2_000_000_000  # Bytes of all predictions, unpacked.

NONE = np.empty(0, np.int64)

Metrics = Mapping[str, tuple[Metric, float]]


def stored_outputs(folder: str | Path, report: Report) -> tuple[NDArray[Any], dict[str, Outputs]]:
    """Return the index of each row in its split, and the outputs of each model that `folder` keeps, by model.

    The report names the file; that of the second evaluation set is the one of `on_extra(report)`.

    Raises:
        ValueError: the file is missing, is larger than 2 GB in memory, or holds something else.

    Example:
        >>> from hf_compress import Report
        >>> from hf_compress.report.rescoring import stored_outputs
        >>> rows, outputs = stored_outputs("run/compressed", Report.load("run/compressed"))  # doctest: +SKIP
        >>> outputs["compressed"].rows  # doctest: +SKIP
        872
    """
    name = report.predictions or PREDICTIONS_NAME
    path = Path(folder) / name
    if path.name != name:
        raise ValueError(f"`predictions` must be the name of a file in the folder; got {name[:100]!r}.")
    try:
        kind = _kind(path)
        columns = read_predictions(folder, name)
        models = [name for name in (COMPRESSED, DENSE, CONTROL) if name in columns]
        return columns["row"], {name: _outputs(columns, name, kind) for name in models}
    except (pa.ArrowException, OSError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _kind(path: Path) -> Kind:
    """Return the kind of the outputs in a file of ordinary size."""
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
        if (size := sum(group.total_byte_size for group in groups)) > LARGEST:
            raise ValueError(f"{path} holds {size:,} bytes of predictions; {LARGEST:,} are allowed.")
        kind = (file.schema_arrow.metadata or {}).get(KIND.encode(), b"").decode("utf-8", "replace")
    if kind not in get_args(Kind):
        raise ValueError(f"{path} holds predictions of the kind {kind!r}; known are {', '.join(get_args(Kind))}.")
    return cast(Kind, kind)


def known_metrics(report: Report, stored: Mapping[str, Outputs]) -> dict[str, tuple[Metric, float]]:
    """Return the metric and its scale that give each reported score from the stored outputs, by the score's name."""
    tallies = {
        name: Tally(outputs, report.labels or {}, scores)
        for name, outputs in stored.items()
        if (scores := reported_scores(report, name))
    }
    found = {}
    for name in [name for name in report.compressed if name not in AGAINST_DENSE]:
        both = [tally for tally in tallies.values() if name in tally.scores]
        metric = (find_metric(name, both) if both else None) or _find(name, tallies.get(COMPRESSED))
        if metric is not None:
            found[name] = metric
    return found


def reported_scores(report: Report, model: str) -> dict[str, float]:
    """Return the scores that the report gives a model; empty if it has none."""
    control = None if report.control is None else report.control.scores
    return {COMPRESSED: report.compressed, DENSE: report.dense, CONTROL: control}[model] or {}


def scores_of(outputs: Outputs, metrics: Metrics, report: Report) -> dict[str, float]:
    """Return the scores of `outputs` by metric, without those that do not apply to them.

    Example:
        >>> import numpy as np
        >>> from hf_compress.report.outputs import Outputs
        >>> from hf_compress.report.metrics import ACCURACY
        >>> from hf_compress.report.rescoring import scores_of
        >>> outputs = Outputs("classes", np.array([0, 1]), np.array([0, 0]))
        >>> scores_of(outputs, {"accuracy": (ACCURACY, 100.0)}, report)  # doctest: +SKIP
        {'accuracy': 50.0}
    """
    tally, found = Tally(outputs, report.labels or {}, {}), {}
    for name, (metric, scale) in metrics.items():
        scorer = metric.scorer(tally)
        if scorer is not None:
            found[name] = scale * float(scorer(np.ones((1, outputs.rows)))[0])
    return found


def check_scores(folder: str | Path, report: Report) -> Check:
    """Compute the reported scores and intervals again from the predictions in `folder`, and return what differs.

    Both evaluation sets are checked, if the report has a second one.
    """
    check, extra = _check(folder, report), on_extra(report)
    if judged(report, report.max_drop).verdict != report.verdict:
        said = f"The verdict {report.verdict} is not what the report's own scores, formats and promises give."
        check = Check("scores", DIFFERS, [*(check.details if check.verdict == DIFFERS else ()), said])
    if extra is None:
        return check
    second = _check(folder, extra)
    details = [*check.details, *(f"Extra rows: {sentence}" for sentence in second.details)]
    verdicts = {check.verdict, second.verdict}
    verdict = next(one for one in (DIFFERS, UNCHECKED, TRUE) if one in verdicts)
    return Check("scores", verdict, details)


def _check(folder: str | Path, report: Report) -> Check:
    """Return the check of the first evaluation set of `report`."""
    if report.predictions is None and report.queries is None:
        reason = report.without_interval.get(report.main_metric, "")
        return Check("scores", UNCHECKED, [f"The report keeps no predictions of rows. {reason}".strip()])
    try:
        rows, stored = (NONE, {}) if report.predictions is None else stored_outputs(folder, report)
        said, unknown = _differences(rows, stored, stored_queries(folder, report), report)
    except ValueError as error:
        return Check("scores", DIFFERS, [" ".join(str(error).split())])
    if said:
        return Check("scores", DIFFERS, said)
    unchecked = report.main_metric in unknown
    return Check("scores", UNCHECKED if unchecked else TRUE, list(unknown.values()))


def _differences(
    rows: NDArray[Any], stored: Mapping[str, Outputs], queries: Mapping[str, Queries], report: Report
) -> tuple[list[str], dict[str, str]]:
    """Return what differs, and which metrics cannot be computed from predictions, in sentences."""
    said, unknown = [], {name: f"`{name}` cannot be computed from scores of queries." for name in report.compressed}
    unknown = {} if stored else unknown
    if stored and len(rows) != report.dataset.eval_rows:
        said.append(f"{PREDICTIONS_NAME} has {len(rows):,} rows, the report says {report.dataset.eval_rows:,}.")
    if len(set(rows.tolist())) < len(rows):
        said.append(f"{PREDICTIONS_NAME} has the same row twice.")
    for model, outputs in stored.items():
        scores = reported_scores(report, model)
        for name, reported in scores.items():
            tally = Tally(outputs, report.labels or {}, scores)
            apart = name in AGAINST_DENSE or name in queries.get(COMPRESSED, {})
            near = None if apart else _nearest(name, tally)
            tolerance = LOSS_TOLERANCE if name.endswith("loss") else TOLERANCE
            if near is not None and abs(near - reported) <= tolerance * max(1.0, abs(reported)):
                continue
            if near is not None and name in _known_intervals(report, model):
                said.append(
                    f"The predictions of the {model} model give `{name}` {near:.6g}, the report {reported:.6g}."
                )
            elif model == COMPRESSED:
                unknown[name] = f"`{name}` cannot be computed from predictions of rows."
    for model, values in queries.items():
        for name, each in values.items():
            unknown.pop(name, None)
            given = reported_scores(report, model).get(name)
            if given is not None and abs(each.mean() - given) > TOLERANCE * max(1.0, abs(given)):
                said.append(
                    f"The queries of the {model} model give `{name}` {each.mean():.6g}, the report {given:.6g}."
                )
    return said or _intervals(stored, queries, report), unknown


def _known_intervals(report: Report, model: str) -> set[str]:
    """Return the metrics of a model that were computed from predictions before."""
    control = {} if report.control is None else report.control.comparison
    return {*report.intervals} | {*{DENSE: report.comparison, CONTROL: control}.get(model, {})}


def _intervals(stored: Mapping[str, Outputs], queries: Mapping[str, Queries], report: Report) -> list[str]:
    """Return which intervals differ from those of the predictions and of the queries, in sentences."""
    names, control = report.labels or {}, report.control
    again = replace(report, intervals={}, comparison={})
    if stored:
        again = with_intervals(report, stored[COMPRESSED], stored.get(DENSE), names, control=stored.get(CONTROL))
    again = with_query_intervals(again, queries) if queries else again
    ours, found_again = ({} if one is None else one.comparison for one in (control, again.control))
    said = []
    for what, reported, found in (
        ("interval", report.intervals, again.intervals),
        ("difference to the dense model", report.comparison, again.comparison),
        ("difference to the control", ours, found_again),
    ):
        # A loss is computed from the logits, which are kept in 16 bits, so it is not reproduced exactly.
        known = {*found, *AGAINST_DENSE}  # The latter are measured from all answers of both models.
        without = sorted(name for name in reported.keys() - known if not name.endswith("loss"))
        said += [f"The predictions give no {what} of `{name}`." for name in without]
        for name in sorted(reported.keys() & found.keys()):
            one, two = reported[name], found[name]
            tolerance = LOSS_TOLERANCE if name.endswith("loss") else TOLERANCE
            pairs = ((one.value, two.value), (one.low, two.low), (one.high, two.high))
            if any(abs(a - b) > tolerance * max(1.0, abs(a)) for a, b in pairs):
                said.append(
                    f"The predictions give the {what} of `{name}` {two.value:.4g} ({two.low:.4g} to {two.high:.4g}), "
                    f"the report {one.value:.4g} ({one.low:.4g} to {one.high:.4g})."
                )
    return said


def _nearest(name: str, tally: Tally) -> float | None:
    """Return the score that is nearest to the reported one, of all metrics of this name; None if there is none."""
    found = []
    for metric in METRICS:
        scorer = metric.scorer(tally) if any(word in name.lower() for word in metric.words) else None
        if scorer is not None:
            value = float(scorer(np.ones((1, tally.outputs.rows)))[0])
            found += [value, 100 * value]
    return min(found, key=lambda value: abs(value - tally.scores[name]), default=None)


def _find(name: str, tally: Tally | None) -> tuple[Metric, float] | None:
    """Return the metric of this name for the compressed model, or the first of this name without its outputs."""
    if tally is not None:
        return find_metric(name, [tally])
    return next(((metric, 1.0) for metric in METRICS if any(word in name.lower() for word in metric.words)), None)


def _outputs(columns: Mapping[str, NDArray[Any]], model: str, kind: Kind) -> Outputs:
    """Return the outputs of a model from the columns of the file."""
    labels, predicted, logits = columns["label"], columns[model], columns.get(f"{model}_logits")
    if kind == "numbers":
        return Outputs(kind, labels.astype(np.float64), predicted.astype(np.float64))
    if kind == "tokens":
        lengths = np.array([len(row) for row in labels], np.int64)
        if not np.array_equal(lengths, [len(row) for row in predicted]):
            raise ValueError(f"{PREDICTIONS_NAME} has another number of labels than of predictions in a row.")
        given, found = (np.concatenate([NONE, *values]).astype(np.int64) for values in (labels, predicted))
        return Outputs(kind, given, found, lengths)
    given, found = (
        (values if kind == "classes" else np.stack(list(values))).astype(np.int64) for values in (labels, predicted)
    )
    scored = None if logits is None else np.stack(list(logits)).astype(np.float32)
    return Outputs(kind, given, found, logits=scored)
