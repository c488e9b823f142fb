"""What the methods do to the score, alone and on top of each other: a linear model with interactions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from hf_compress.extras import extra
from hf_compress.study.analysis.measurements import Measurement
from hf_compress.study.analysis.panel import FEWEST_TASKS, LEVEL
from hf_compress.study.grid.combinations import COMBINATIONS, DENSE, parts, within

with extra("study", "A study"):
    from scipy.stats import t


@dataclass(frozen=True)
class Estimate:
    """A number with its cluster-robust interval; the interval is None with fewer than `FEWEST_TASKS` clusters."""

    value: float
    interval: tuple[float, float] | None
    clusters: int


@dataclass(frozen=True)
class Gain:
    """What `method` adds where `on_top_of` is done already: points of score, and how many times smaller it makes."""

    method: str
    on_top_of: str
    score: Estimate
    analytic: float
    disk: float
    blocks: int


def interactions(measurements: Sequence[Measurement], sparsity: float) -> dict[str, Estimate]:
    """The coefficient of each combination in a linear model of the score, by the combination's name.

    That of one method is its effect alone. That of two is what they do together beyond the sum of both, and that of
    three what is left beyond all of these: treatment coding, in which an interaction is the difference that the paper
    speaks of. Every model, task and seed is a block with a mean of its own, and models with several seeds weigh
    no more than others. Intervals are cluster-robust, with tasks as the clusters and Student's t.

    Args:
        measurements: of any combinations.
        sparsity: the pruned ones to look at; others are left out.
    """
    chosen = [measurement for measurement in measurements if measurement.sparsity in (0.0, sparsity)]
    there = {measurement.combination for measurement in chosen}
    # Of a combination that lacks one of its parts nothing can be told apart.
    terms = [name for name in COMBINATIONS if name != DENSE and set(within(name)) <= there]
    chosen = [measurement for measurement in chosen if measurement.combination in (DENSE, *terms)]
    if not terms:
        return {}
    design = np.array([[float(set(parts(term)) <= set(parts(o.combination))) for term in terms] for o in chosen])
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
    """The coefficients of a weighted least-squares fit with a mean for each block, and their covariance.

    The means are taken out first (Frisch & Waugh, 1933). The covariance is robust to any dependence within a cluster
    (Liang & Zeger, 1986) and scaled by G / (G - 1) for G clusters, with which a balanced design gives the variance of
    the mean of the clusters' own estimates. It is not a number for one cluster.

    Raises:
        ValueError: the rows cannot tell the terms apart.
    """
    x = np.column_stack([_centred(column, blocks, weights) for column in design.T])
    y = _centred(values, blocks, weights)
    gram = x.T @ (weights[:, None] * x)
    if np.linalg.matrix_rank(gram) < len(gram):
        raise ValueError(
            "The cells that are finished cannot tell the effects of the methods apart: no model, task and seed has "
            "both sides of some of them. Let the study go on."
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
    """What `method` adds to `on_top_of`, `combined` being both together, where both were measured; None if nowhere.

    The mean of the differences of means over seeds, with an interval as in `interactions`; of the ratios of sizes the
    geometric mean.
    """
    wanted = {name: sparsity if "mp" in parts(name) else 0.0 for name in (on_top_of, combined)}
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
    """The mean of `values` with its cluster-robust interval."""
    number = int(clusters.max()) + 1
    sums = np.bincount(clusters, weights=values - values.mean())
    scale = number / (number - 1) if number > 1 else np.nan
    error = float(np.sqrt(scale * np.sum(sums**2)) / len(values))
    return Estimate(float(values.mean()), student_interval(float(values.mean()), error, number), number)


def student_interval(value: float, error: float, clusters: int) -> tuple[float, float] | None:
    """`value` plus and minus Student's t times its standard error; None with fewer than `FEWEST_TASKS` clusters."""
    if clusters < FEWEST_TASKS:
        return None
    reach = float(t.ppf((1 + LEVEL) / 2, clusters - 1)) * error
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
