"""Scores of each query of a search: noted while sentence-transformers evaluates, and kept beside the report."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hf_compress.checkpoint.aside import written_aside
from hf_compress.report.intervals import DRAWS, LEVEL, Interval, bootstrap, ends
from hf_compress.report.predictions import COMPRESSED, DENSE
from hf_compress.report.report import Report

QUERIES_NAME = "predictions-queries.parquet"
SEARCH = "InformationRetrievalEvaluator"
MODELS = (DENSE, COMPRESSED)
BOOTSTRAP = f"bootstrap, {DRAWS:,} resamples of queries"
TOLERANCE = 1e-6
LARGEST = 100_000_000  # Bytes of the file, unpacked.

# By the name of a score: its value for each query. The score is their mean.
Queries = dict[str, NDArray[np.float64]]


def searches(evaluator: Any) -> list[Any]:
    """Return the evaluators of searches in an evaluator of sentence-transformers, which may hold others."""
    if any(kind.__name__ == SEARCH for kind in type(evaluator).__mro__):
        return [evaluator]
    return [one for part in getattr(evaluator, "evaluators", None) or () for one in searches(part)]


@contextmanager
def noting_queries(evaluator: Any) -> Iterator[Queries]:
    """A context with the scores of each query, once the evaluators of searches in `evaluator` have run.

    Scores have the names that the evaluator gives them. All evaluators are afterwards as they were.
    """
    found: Queries = {}
    with ExitStack() as stack:
        for one in searches(evaluator):
            vars(one)["compute_metrics"] = _noted(one, one.compute_metrics, found)
            stack.callback(vars(one).pop, "compute_metrics")
        yield found


def _noted(evaluator: Any, compute: Callable[[Any], Any], found: Queries) -> Callable[[Any], Any]:
    """Return `compute` of an evaluator, which notes in `found` what it gives for each query alone."""
    calls, prefix = 0, f"{evaluator.name}_" if evaluator.name else ""

    def noted(results: list[Any]) -> Any:
        nonlocal calls
        names = list(evaluator.score_functions)  # It is called once for each, in this order.
        name, calls = names[calls % len(names)], calls + 1
        alone, values = copy.copy(evaluator), dict[str, list[float]]()
        vars(alone).pop("compute_metrics")
        for query, text, hits in zip(evaluator.queries_ids, evaluator.queries, results, strict=True):
            alone.queries_ids, alone.queries = [query], [text]
            for metric, by_k in alone.compute_metrics([hits]).items():
                for k, value in by_k.items():
                    values.setdefault(f"{name}_{metric.removesuffix('@k')}@{k}", []).append(float(value))
        found.update({prefix + key: np.array(each) for key, each in values.items()})
        return compute(results)

    return noted


def keep_queries(report: Report, folder: str | Path, queries: Mapping[str, Queries]) -> Report:
    """Write the scores of each query into `folder`, and return `report` with the intervals that they allow.

    The file has a row for each score and query, with a column for each model.

    Args:
        report: of the model in `folder`.
        folder: that of the report.
        queries: by model; without searches, no file is written.
    """
    known = {model: _of_report(report, model, queries.get(model, {})) for model in MODELS}
    names = list(known[COMPRESSED])
    if not names:
        return report
    counts = [len(known[COMPRESSED][name]) for name in names]
    table = {
        "score": pa.array(np.repeat(names, counts)).dictionary_encode(),
        "query": np.concatenate([np.arange(count, dtype=np.int32) for count in counts]),
    }
    for model, values in known.items():
        if values:
            none = [np.full(count, np.nan) for count in counts]
            parts = [values.get(name, empty) for name, empty in zip(names, none, strict=True)]
            table[model] = np.concatenate(parts).astype(np.float32)
    with written_aside(Path(folder), QUERIES_NAME, replace=True) as aside:
        pq.write_table(pa.table(table), aside, compression="zstd")
    return with_query_intervals(replace(report, queries=QUERIES_NAME), known)


def _of_report(report: Report, model: str, queries: Queries) -> Queries:
    """Return the scores that the report of `model` has, and whose mean over the queries it is."""
    scores = {DENSE: report.dense, COMPRESSED: report.compressed}[model] or {}
    counts = {name: len(values) for name, values in queries.items()}
    return {
        name: values
        for name, values in queries.items()
        if counts[name] > 1 and name in scores and abs(values.mean() - scores[name]) < TOLERANCE
    }


def stored_queries(folder: str | Path, report: Report) -> dict[str, Queries]:
    """Return the scores of each query that `folder` keeps, by model; nothing if the report names no such file.

    Raises:
        ValueError: the file is missing, too large, or holds something else.
    """
    if report.queries is None:
        return {}
    path = Path(folder) / report.queries
    if path.name != report.queries:
        raise ValueError(f"`queries` must be the name of a file in the folder; got {report.queries[:100]!r}.")
    if not path.is_file():
        raise ValueError(f"{path} is missing.")
    try:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
            if (size := sum(group.total_byte_size for group in groups)) > LARGEST:
                raise ValueError(f"{path} holds {size:,} bytes; {LARGEST:,} are allowed.")
            table = file.read()
        scores = np.asarray(table.column("score").to_pylist())
        columns = {
            name: table.column(name).to_numpy().astype(np.float64) for name in MODELS if name in table.column_names
        }
    except (pa.ArrowException, KeyError, OSError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    found: dict[str, Queries] = {}
    for model, values in columns.items():
        parts = {str(name): values[scores == name] for name in dict.fromkeys(scores.tolist())}
        found[model] = {name: part for name, part in parts.items() if np.isfinite(part).all()}
    return found


def with_query_intervals(report: Report, queries: Mapping[str, Queries]) -> Report:
    """Return `report` with an interval of each score of a search, and of its difference to the dense model.

    Both models see the same resamples of the queries, so the differences are paired.

    Args:
        report: with the scores.
        queries: by model; "dense" may be missing.
    """
    ours, dense = queries[COMPRESSED], queries.get(DENSE, {})
    intervals, comparison = dict(report.intervals), dict(report.comparison)
    for count in dict.fromkeys(map(len, ours.values())):
        names = [name for name, values in ours.items() if len(values) == count]
        both = {(COMPRESSED, name): ours[name] for name in names}
        both |= {(DENSE, name): dense[name] for name in names if name in dense}
        drawn = bootstrap({key: _mean_of(values) for key, values in both.items()}, count)
        for name in names:
            draws = drawn[COMPRESSED, name]
            intervals[name] = _interval(report.compressed[name], draws, BOOTSTRAP, count)
            if name in dense and name in (report.dense or {}):
                value = report.compressed[name] - (report.dense or {})[name]
                comparison[name] = _interval(value, draws - drawn[DENSE, name], f"paired {BOOTSTRAP}", count)
    without = {name: why for name, why in report.without_interval.items() if name not in ours}
    return replace(report, intervals=intervals, comparison=comparison, without_interval=without)


def _mean_of(values: NDArray[np.float64]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    return lambda weights: weights @ values / len(values)


def _interval(value: float, draws: NDArray[np.float64], method: str, count: int) -> Interval:
    low, high = ends(draws)
    return Interval(value, low, high, LEVEL, method, "queries", count)
