"""Effects of the methods on the score, alone and together: a linear model with interactions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from hf_compress.extras import extra
from hf_compress.study.analysis.measurement import Measurement
from hf_compress.study.analysis.panel import CONFIDENCE, FEWEST_TASKS
from hf_compress.study.grid.combinations import COMBINATIONS, DENSE, methods_in, subsets

with extra("study", "A study"):
    from scipy.stats import t


@dataclass(frozen=True)
class Estimate:
    """A number with its cluster-robust interval; None with fewer than `FEWEST_TASKS` clusters."""

    value: float
    interval: tuple[float, float] | None
    clusters: int


@dataclass(frozen=True)
class Gain:
    """The effect of adding a method to a model that already has other methods.

    Args:
        method: the method that is added.
        on_top_of: the combination before.
        score: change of score in points.
        analytic: ratio of analytic sizes, before / after.
        disk: ratio of bytes on disk, before / after.
        blocks: number of models × tasks.
    """

    method: str
    on_top_of: str
    score: Estimate
    analytic: float
    disk: float
    blocks: int


def interactions(measurements: Sequence[Measurement], sparsity: float) -> dict[str, Estimate]:
    """Return the coefficients of a linear model of the score, by combination.

    The coefficient of one method is its effect alone. That of two methods is what they do together beyond the sum of
    both, and that of three is the rest. This is treatment coding: the interaction is the difference that the paper
    reports. Each model, task and seed is a block with its own mean. Models with several seeds have no more weight than
    others. Intervals are cluster-robust, with tasks as clusters and Student's t.

    Args:
        measurements: measurements of any combinations.
        sparsity: the sparsity of pruned cells to use.
    """
    chosen = [measurement for measurement in measurements if measurement.sparsity in (0.0, sparsity)]
    there = {measurement.combination for measurement in chosen}
    # A combination needs all its subsets, otherwise its coefficients cannot be separated.
    terms = [name for name in COMBINATIONS if name != DENSE and set(subsets(name)) <= there]
    chosen = [measurement for measurement in chosen if measurement.combination in (DENSE, *terms)]
    if not terms:
        return {}
    design = np.array(
        [[float(set(methods_in(term)) <= set(methods_in(o.combination))) for term in terms] for o in chosen]
    )
    blocks = _numbered([(o.model, o.task, o.seed) for o in chosen])
    alike = _numbered([(o.model, o.task, o.combination) for o in chosen])
    weights = 1.0 / np.bincount(alike)[alike]
    clusters = _numbered([o.task for o in chosen])
    scores = np.array([o.score for o in chosen])
    coefficients, covariance = absorbing_fit(design, scores, blocks, clusters, weights)
    number = len(set(clusters.tolist()))
    return {
        term: Estimate(float(value), student_interval(float(value), float(np.sqrt(variance)), number), number)
        for term, value, variance in zip(terms, coefficients, np.diag(covariance), strict=True)
    }


def absorbing_fit(
    design: Float[np.ndarray, "rows terms"],
    values: Float[np.ndarray, " rows"],
    blocks: Int[np.ndarray, " rows"],
    clusters: Int[np.ndarray, " rows"],
    weights: Float[np.ndarray, " rows"],
) -> tuple[Float[np.ndarray, " terms"], Float[np.ndarray, "terms terms"]]:
    """Return the coefficients of a weighted least-squares fit with one mean per block, and their covariance.

    Block means are removed first (Frisch & Waugh, 1933). The covariance allows any dependence within a cluster
    (Liang & Zeger, 1986) and is scaled by G / (G - 1) for G clusters; for a balanced design this is the variance
    of the mean of the clusters' own estimates. It is NaN for one cluster.

    Args:
        design: one column per term.
        values: what to explain.
        blocks: block of each row, numbered from 0.
        clusters: cluster of each row, numbered from 0.
        weights: weight of each row.

    Raises:
        ValueError: the rows cannot separate the terms.
    """
    x = np.column_stack([_centred(column, blocks, weights) for column in design.T])
    y = _centred(values, blocks, weights)
    gram = x.T @ (weights[:, None] * x)
    if np.linalg.matrix_rank(gram) < len(gram):
        raise ValueError(
            "The finished cells cannot separate the effects of the methods: for some method, no model, task and seed "
            "has cells with it and without it. Continue the study."
        )
    bread = np.linalg.inv(gram)
    coefficients = bread @ (x.T @ (weights * y))
    residual = weights * (y - x @ coefficients)
    number = int(clusters.max()) + 1
    sums = np.zeros((number, x.shape[1]))
    np.add.at(sums, clusters, residual[:, None] * x)
    scale = number / (number - 1) if number > 1 else np.nan
    return coefficients, scale * bread @ (sums.T @ sums) @ bread


def gains(
    measurements: Sequence[Measurement], method: str, on_top_of: str, combined: str, sparsity: float
) -> Gain | None:
    """Return what `method` adds to `on_top_of`; None if no model and task has both.

    The score is the mean difference of means over seeds, with an interval as in `interactions`. Ratios of sizes are
    geometric means.

    Args:
        measurements: the study.
        method: the method that is added.
        on_top_of: the combination before.
        combined: the combination after.
        sparsity: the sparsity of pruned cells to use.
    """
    wanted = {name: sparsity if "mp" in methods_in(name) else 0.0 for name in (on_top_of, combined)}
    cells: dict[tuple[str, str], dict[str, list[Measurement]]] = {}
    for measurement in measurements:
        if wanted.get(measurement.combination) == measurement.sparsity:
            block = cells.setdefault((measurement.model, measurement.task), {})
            block.setdefault(measurement.combination, []).append(measurement)
    pairs = [(task, block[on_top_of], block[combined]) for (_, task), block in cells.items() if len(block) == 2]
    if not pairs:
        return None
    differences = np.array([_mean(after, "score") - _mean(before, "score") for _, before, after in pairs])
    ratios = {
        size: float(np.exp(np.mean([np.log(_mean(before, size) / _mean(after, size)) for _, before, after in pairs])))
        for size in ("analytic_bytes", "packed_bytes")
    }
    estimate = clustered_mean(differences, _numbered([task for task, _, _ in pairs]))
    return Gain(method, on_top_of, estimate, ratios["analytic_bytes"], ratios["packed_bytes"], len(pairs))


def clustered_mean(values: Float[np.ndarray, " rows"], clusters: Int[np.ndarray, " rows"]) -> Estimate:
    """Return the mean of `values` with its cluster-robust interval."""
    number = int(clusters.max()) + 1
    sums = np.bincount(clusters, weights=values - values.mean())
    scale = number / (number - 1) if number > 1 else np.nan
    error = float(np.sqrt(scale * np.sum(sums**2)) / len(values))
    return Estimate(float(values.mean()), student_interval(float(values.mean()), error, number), number)


def student_interval(value: float, error: float, clusters: int) -> tuple[float, float] | None:
    """Return `value` ± Student's t × its standard error; None with fewer than `FEWEST_TASKS` clusters."""
    if clusters < FEWEST_TASKS:
        return None
    reach = float(t.ppf((1 + CONFIDENCE) / 2, clusters - 1)) * error
    return value - reach, value + reach


def _centred(
    values: Float[np.ndarray, " rows"], blocks: Int[np.ndarray, " rows"], weights: Float[np.ndarray, " rows"]
) -> Float[np.ndarray, " rows"]:
    means = np.bincount(blocks, weights * values) / np.bincount(blocks, weights)
    return values - means[blocks]


def _numbered(labels: Sequence[object]) -> Int[np.ndarray, " rows"]:
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    return np.array([places[label] for label in labels])


def _mean(measurements: Sequence[Measurement], name: str) -> float:
    return float(np.mean([getattr(measurement, name) for measurement in measurements]))
