"""Metrics of predictions of rows, computed for many weightings of the rows at once, as a bootstrap needs them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_compress.report.outputs import Kind
from hf_compress.report.tally import Tally, hits, row_losses

Numbers = NDArray[np.float64]
# Weights of shape (draws, rows) to scores of shape (draws,). A weight says how often a draw has the row.
Scorer = Callable[[Numbers], Numbers]
TOLERANCE = 1e-6
# Below this, a score differs from 0 by rounding alone.
SMALLEST = 1e-6
# A spread below this share of the sum of squares is rounding, and the numbers are all equal.
CONSTANT = 1e-12
# The loss is computed in float32, batch by batch, so its mean is less exact.
LOSS_TOLERANCE = 1e-5
# Scripts report shares of one, or percentages.
SCALES = (1.0, 100.0)


@dataclass(frozen=True)
class Metric:
    """A metric that can be computed again from predictions of rows.

    Args:
        words: parts of the names that scripts give it, in lower case.
        scorer: makes the function from weights to scores; None if the metric does not apply to these outputs.
        counts_entities: whether it counts entities, not the rows or tokens that are labelled.
        tolerance: how far it may be from the reported score, as a share of that.
    """

    words: tuple[str, ...]
    scorer: Callable[[Tally], Scorer | None]
    counts_entities: bool = False
    tolerance: float = TOLERANCE

    def reproduces(self, name: str, tally: Tally, scale: float) -> bool:
        """Whether the metric, times `scale`, gives the score that the script reports as `name`."""
        scorer, reported = self.scorer(tally), tally.scores[name]
        if scorer is None:
            return False
        found = scale * float(scorer(np.ones((1, tally.outputs.rows)))[0])
        return abs(found - reported) <= self.tolerance * max(abs(reported), SMALLEST)


def find_metric(name: str, tallies: Sequence[Tally]) -> tuple[Metric, float] | None:
    """The metric that gives the score which the script reports as `name`, and the scale of the script; else None.

    A metric is taken only if it reproduces the reported score of every model, to a millionth of its value.

    Example:
        >>> import numpy as np
        >>> from hf_compress.report.metrics import find_metric
        >>> from hf_compress.report.outputs import Outputs
        >>> from hf_compress.report.tally import Tally
        >>> outputs = Outputs("classes", np.array([0, 1, 1, 1]), np.array([0, 1, 0, 1]))
        >>> _, scale = find_metric("accuracy", [Tally(outputs, {}, {"accuracy": 75.0})])
        >>> scale
        100.0
    """
    for metric in METRICS:
        if any(word in name.lower() for word in metric.words):
            for scale in SCALES:
                if all(metric.reproduces(name, tally, scale) for tally in tallies):
                    return metric, scale
    return None


def mean_of(parts: Sequence[tuple[Metric, float]]) -> Metric:
    """The mean of several metrics with their scales, as the combined score of a GLUE task is."""

    def scorer(tally: Tally) -> Scorer | None:
        found = [(metric.scorer(tally), scale) for metric, scale in parts]
        scorers = [(part, scale) for part, scale in found if part is not None]
        if len(scorers) < len(parts):
            return None
        return lambda weights: np.mean([scale * part(weights) for part, scale in scorers], axis=0)

    return Metric((), scorer)


def _of_sums(values: NDArray[Any], score: Callable[[Numbers], Numbers]) -> Scorer:
    """A metric that is a function of sums over rows: `values` has shape (rows, sums)."""
    values = values.astype(np.float64)
    return lambda weights: score(weights @ values)


def _over(numerator: Numbers, denominator: Numbers, otherwise: float = 0.0) -> Numbers:
    """A quotient, and `otherwise` where the denominator is zero."""
    safe = np.where(denominator == 0, 1.0, denominator)
    return np.where(denominator == 0, otherwise, numerator / safe)


# --- one right answer


def _accuracy(tally: Tally) -> Scorer | None:
    outputs = tally.outputs
    if outputs.kind == "numbers":
        return None
    right = hits(outputs)
    total = np.ones(outputs.rows) if outputs.lengths is None else outputs.lengths
    return _of_sums(np.stack([right, total], 1), lambda sums: _over(sums[:, 0], sums[:, 1]))


def _each_flag(tally: Tally) -> Scorer | None:
    outputs = tally.outputs
    if outputs.kind != "flags":
        return None
    return _of_sums((outputs.labels == outputs.predicted).mean(1, keepdims=True), _mean_of(outputs.rows))


def _mean_of(rows: int) -> Callable[[Numbers], Numbers]:
    """The mean of the one sum: every draw has as many rows as the set."""
    return lambda sums: sums[:, 0] / rows


# --- counts of each class: true positives, predicted, labelled


Maker = Callable[[Tally], Scorer | None]
ClassScore = Callable[[Numbers, Numbers, Numbers], Numbers]


def _f1(right: Numbers, predicted: Numbers, labelled: Numbers) -> Numbers:
    return _over(2 * right, predicted + labelled)


def _precision(right: Numbers, predicted: Numbers, labelled: Numbers) -> Numbers:
    return _over(right, predicted)


def _recall(right: Numbers, predicted: Numbers, labelled: Numbers) -> Numbers:
    return _over(right, labelled)


def _positive(score: ClassScore, counts: Numbers) -> Numbers:
    return score(*(counts[:, part, 1] for part in range(3)))


def _micro(score: ClassScore, counts: Numbers) -> Numbers:
    return score(*(counts[:, part].sum(-1) for part in range(3)))


def _macro(score: ClassScore, counts: Numbers) -> Numbers:
    # As in scikit-learn: a class that is neither labelled nor predicted does not count.
    present = counts[:, 1] + counts[:, 2] > 0
    return _over((score(*_parts(counts)) * present).sum(-1), present.sum(-1))


def _all_macro(score: ClassScore, counts: Numbers) -> Numbers:
    return score(*_parts(counts)).mean(-1)


def _weighted(score: ClassScore, counts: Numbers) -> Numbers:
    return _over((score(*_parts(counts)) * counts[:, 2]).sum(-1), counts[:, 2].sum(-1))


def _parts(counts: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    return counts[:, 0], counts[:, 1], counts[:, 2]


def _matthews(counts: Numbers) -> Numbers:
    right, predicted, labelled = _parts(counts)
    total = labelled.sum(-1)
    covariance = right.sum(-1) * total - (predicted * labelled).sum(-1)
    spread = (total**2 - (predicted**2).sum(-1)) * (total**2 - (labelled**2).sum(-1))
    return _over(covariance, np.sqrt(np.maximum(spread, 0)))


def _balanced(counts: Numbers) -> Numbers:
    right, _, labelled = _parts(counts)
    return _over(_over(right, labelled).sum(-1), (labelled > 0).sum(-1))


def _of_classes(
    score: Callable[[Numbers], Numbers], kinds: tuple[Kind, ...] = ("classes", "tokens"), most: int | None = None
) -> Maker:
    def scorer(tally: Tally) -> Scorer | None:
        counts = tally.classes if tally.outputs.kind in kinds else None
        if counts is None or (most is not None and counts.shape[2] > most):
            return None
        shape = counts.shape[1:]
        return _of_sums(counts.reshape(len(counts), -1), lambda sums: score(sums.reshape(-1, *shape)))

    return scorer


def _of_entities(score: ClassScore, average: Callable[[ClassScore, Numbers], Numbers]) -> Maker:
    def scorer(tally: Tally) -> Scorer | None:
        counts = tally.entities
        if counts is None:
            return None
        shape = counts.shape[1:]
        return _of_sums(counts.reshape(len(counts), -1), lambda sums: average(score, sums.reshape(-1, *shape)))

    return scorer


def _averages(word: str, score: ClassScore) -> list[Metric]:
    """F1, precision or recall in every way to average it, those that scripts use most first."""
    return [
        Metric((word,), _of_entities(score, _micro), counts_entities=True),
        Metric((word,), _of_classes(partial(_positive, score), ("classes",), most=2)),
        *(Metric((word,), _of_classes(partial(each, score))) for each in (_macro, _weighted, _micro)),
        *(
            Metric((word,), _of_classes(partial(average, score), ("flags",)))
            for average in (_micro, _all_macro, _weighted)
        ),
        Metric((word,), _of_entities(score, _macro), counts_entities=True),
        Metric((word,), _of_entities(score, _weighted), counts_entities=True),
    ]


# --- numbers


def _of_numbers(
    values: Callable[[NDArray[Any], NDArray[Any]], list[NDArray[Any]]], score: Callable[[Numbers], Numbers]
) -> Maker:
    def scorer(tally: Tally) -> Scorer | None:
        outputs = tally.outputs
        if outputs.kind != "numbers":
            return None
        return _of_sums(np.stack([*values(outputs.labels, outputs.predicted), np.ones(outputs.rows)], 1), score)

    return scorer


def _moments(one: NDArray[Any], two: NDArray[Any]) -> list[NDArray[Any]]:
    # Around the means: sums of squares of large numbers would lose digits.
    one, two = one - one.mean(), two - two.mean()
    return [one, two, one * one, two * two, one * two]


def _correlation(sums: Numbers) -> Numbers:
    one, two, ones, twos, both, total = sums.T
    spreads = [
        np.where(spread > CONSTANT * of * total, spread, 0)
        for spread, of in ((ones * total - one**2, ones), (twos * total - two**2, twos))
    ]
    return _over(both * total - one * two, np.sqrt(spreads[0]) * np.sqrt(spreads[1]))


def _spearman(tally: Tally) -> Scorer | None:
    outputs = tally.outputs
    if outputs.kind != "numbers":
        return None
    sorts = [_Ranks(values) for values in (outputs.labels, outputs.predicted)]

    def score(weights: Numbers) -> Numbers:
        ranks = [ranks(weights) - (weights.sum(1, keepdims=True) + 1) / 2 for ranks in sorts]
        covariance, *spreads = (
            (weights * one * two).sum(1) for one, two in ((ranks[0], ranks[1]), (ranks[0],) * 2, (ranks[1],) * 2)
        )
        return _over(covariance, np.sqrt(spreads[0]) * np.sqrt(spreads[1]))

    return score


class _Ranks:
    """The mean ranks of values among the rows of each draw, ties sharing a rank."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        new = np.concatenate([[True], ordered[1:] != ordered[:-1]])
        self.starts, self.group = np.flatnonzero(new), np.empty(len(values), np.int64)
        self.group[self.order] = np.cumsum(new) - 1

    def __call__(self, weights: Numbers) -> Numbers:
        tied = np.add.reduceat(weights[:, self.order], self.starts, axis=1)
        ranks: Numbers = (np.cumsum(tied, axis=1) - tied + (tied + 1) / 2)[:, self.group]
        return ranks


# --- the loss


def _loss(tally: Tally) -> Scorer | None:
    outputs = tally.outputs
    losses = row_losses(outputs)
    return None if losses is None else _of_sums(losses[:, None], _mean_of(outputs.rows))


ACCURACY = Metric(("acc", "exact"), _accuracy)
METRICS: tuple[Metric, ...] = (
    Metric(("loss",), _loss, tolerance=LOSS_TOLERANCE),
    ACCURACY,
    Metric(("acc",), _of_classes(_balanced)),
    Metric(("acc", "hamming"), _each_flag),
    *_averages("f1", _f1),
    *_averages("precision", _precision),
    *_averages("recall", _recall),
    Metric(("matthews", "mcc"), _of_classes(_matthews)),
    Metric(("pearson", "corr"), _of_numbers(_moments, _correlation)),
    Metric(("spearman", "corr"), _spearman),
    Metric(("mse", "squared"), _of_numbers(lambda a, b: [(a - b) ** 2], lambda sums: sums[:, 0] / sums[:, 1])),
    Metric(("mse", "squared"), _of_numbers(lambda a, b: [(a - b) ** 2], lambda s: np.sqrt(s[:, 0] / s[:, 1]))),
    Metric(("mae", "absolute"), _of_numbers(lambda a, b: [abs(a - b)], lambda sums: sums[:, 0] / sums[:, 1])),
    Metric(
        ("r2", "r_squared"),
        _of_numbers(
            lambda a, b: [(a - b) ** 2, a - a.mean(), (a - a.mean()) ** 2],
            lambda sums: 1 - _over(sums[:, 0], sums[:, 2] - sums[:, 1] ** 2 / sums[:, 3]),
        ),
    ),
)
