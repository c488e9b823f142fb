"""Formulas of metrics: from counts and predictions of rows to a score for each of many weightings of the rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_compress.report.outputs import Kind
from hf_compress.report.tally import Tally, hits, row_losses

Numbers = NDArray[np.float64]
# Weights of shape (draws, rows) to scores of shape (draws,). A weight says how often a draw has the row.
Scorer = Callable[[Numbers], Numbers]
# Makes a scorer for the outputs of a model; None if the formula does not apply to them.
Maker = Callable[[Tally], Scorer | None]
ClassScore = Callable[[Numbers, Numbers, Numbers], Numbers]
# A spread below this share of the sum of squares is rounding, and the numbers are all equal.
CONSTANT = 1e-12


def _of_sums(values: NDArray[Any], score: Callable[[Numbers], Numbers]) -> Scorer:
    """A metric that is a function of sums over rows: `values` has shape (rows, sums)."""
    values = values.astype(np.float64)
    return lambda weights: score(weights @ values)


def over(numerator: Numbers, denominator: Numbers, otherwise: float = 0.0) -> Numbers:
    """A quotient, and `otherwise` where the denominator is zero."""
    safe = np.where(denominator == 0, 1.0, denominator)
    return np.where(denominator == 0, otherwise, numerator / safe)


# --- one right answer


def accuracy(tally: Tally) -> Scorer | None:
    """The share of rows or tokens that are right."""
    outputs = tally.outputs
    if outputs.kind == "numbers":
        return None
    right = hits(outputs)
    total = np.ones(outputs.rows) if outputs.lengths is None else outputs.lengths
    return _of_sums(np.stack([right, total], 1), lambda sums: over(sums[:, 0], sums[:, 1]))


def each_flag(tally: Tally) -> Scorer | None:
    """The share of single flags that are right."""
    outputs = tally.outputs
    if outputs.kind != "flags":
        return None
    return _of_sums((outputs.labels == outputs.predicted).mean(1, keepdims=True), _mean_of(outputs.rows))


def _mean_of(rows: int) -> Callable[[Numbers], Numbers]:
    """The mean of the one sum: every draw has as many rows as the set."""
    return lambda sums: sums[:, 0] / rows


# --- counts of each class: true positives, predicted, labelled


def f1(right: Numbers, predicted: Numbers, labelled: Numbers) -> Numbers:
    """Twice the right ones, by all that are predicted or labelled."""
    return over(2 * right, predicted + labelled)


def precision(right: Numbers, predicted: Numbers, labelled: Numbers) -> Numbers:
    """The share of the predicted ones that are right."""
    return over(right, predicted)


def recall(right: Numbers, predicted: Numbers, labelled: Numbers) -> Numbers:
    """The share of the labelled ones that are right."""
    return over(right, labelled)


def positive(score: ClassScore, counts: Numbers) -> Numbers:
    """The score of class 1 alone."""
    return score(*(counts[:, part, 1] for part in range(3)))


def micro(score: ClassScore, counts: Numbers) -> Numbers:
    """The score of all classes counted together."""
    return score(*(counts[:, part].sum(-1) for part in range(3)))


def macro(score: ClassScore, counts: Numbers) -> Numbers:
    """The mean of the scores of the classes that are labelled or predicted, as in scikit-learn."""
    present = counts[:, 1] + counts[:, 2] > 0
    return over((score(*_parts(counts)) * present).sum(-1), present.sum(-1))


def all_macro(score: ClassScore, counts: Numbers) -> Numbers:
    """The mean of the scores of all flags."""
    return score(*_parts(counts)).mean(-1)


def weighted(score: ClassScore, counts: Numbers) -> Numbers:
    """The mean of the scores of the classes, weighted by how often each is labelled."""
    return over((score(*_parts(counts)) * counts[:, 2]).sum(-1), counts[:, 2].sum(-1))


def _parts(counts: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    return counts[:, 0], counts[:, 1], counts[:, 2]


def matthews(counts: Numbers) -> Numbers:
    """The correlation of labels and predictions for any number of classes (Gorodkin, 2004)."""
    right, predicted, labelled = _parts(counts)
    total = labelled.sum(-1)
    covariance = right.sum(-1) * total - (predicted * labelled).sum(-1)
    spread = (total**2 - (predicted**2).sum(-1)) * (total**2 - (labelled**2).sum(-1))
    return over(covariance, np.sqrt(np.maximum(spread, 0)))


def kappa(counts: Numbers) -> Numbers:
    """Agreement beyond chance (Cohen, 1960)."""
    right, predicted, labelled = _parts(counts)
    total = labelled.sum(-1)
    chance = (predicted * labelled).sum(-1)
    return over(right.sum(-1) * total - chance, total**2 - chance)


def balanced(counts: Numbers) -> Numbers:
    """The mean recall of the classes that are labelled."""
    right, _, labelled = _parts(counts)
    return over(over(right, labelled).sum(-1), (labelled > 0).sum(-1))


def of_classes(
    score: Callable[[Numbers], Numbers], kinds: tuple[Kind, ...] = ("classes", "tokens"), most: int | None = None
) -> Maker:
    """A formula of the counts of classes.

    Args:
        score: from counts of shape (draws, 3, classes) to scores.
        kinds: the outputs that it applies to.
        most: the largest number of classes.
    """

    def scorer(tally: Tally) -> Scorer | None:
        counts = tally.classes if tally.outputs.kind in kinds else None
        if counts is None or (most is not None and counts.shape[2] > most):
            return None
        shape = counts.shape[1:]
        return _of_sums(counts.reshape(len(counts), -1), lambda sums: score(sums.reshape(-1, *shape)))

    return scorer


def of_entities(score: ClassScore, average: Callable[[ClassScore, Numbers], Numbers]) -> Maker:
    """A formula of the counts of entities: `score` of each type, averaged by `average`."""

    def scorer(tally: Tally) -> Scorer | None:
        counts = tally.entities
        if counts is None:
            return None
        shape = counts.shape[1:]
        return _of_sums(counts.reshape(len(counts), -1), lambda sums: average(score, sums.reshape(-1, *shape)))

    return scorer


# --- numbers


def of_numbers(
    values: Callable[[NDArray[Any], NDArray[Any]], list[NDArray[Any]]], score: Callable[[Numbers], Numbers]
) -> Maker:
    """A formula of sums over rows: of `values` of labels and predictions, and of the rows themselves."""

    def scorer(tally: Tally) -> Scorer | None:
        outputs = tally.outputs
        if outputs.kind != "numbers":
            return None
        return _of_sums(np.stack([*values(outputs.labels, outputs.predicted), np.ones(outputs.rows)], 1), score)

    return scorer


def moments(one: NDArray[Any], two: NDArray[Any]) -> list[NDArray[Any]]:
    """Labels, predictions, their squares and their product, which a correlation is computed from."""
    # Around the means: sums of squares of large numbers would lose digits.
    one, two = one - one.mean(), two - two.mean()
    return [one, two, one * one, two * two, one * two]


def correlation(sums: Numbers) -> Numbers:
    """Pearson's correlation from the sums of `moments`; 0 if either side is constant."""
    one, two, ones, twos, both, total = sums.T
    spreads = [
        np.where(spread > CONSTANT * of * total, spread, 0)
        for spread, of in ((ones * total - one**2, ones), (twos * total - two**2, twos))
    ]
    return over(both * total - one * two, np.sqrt(spreads[0]) * np.sqrt(spreads[1]))


def spearman(tally: Tally) -> Scorer | None:
    """The correlation of the ranks; 0 if either side is constant."""
    outputs = tally.outputs
    if outputs.kind != "numbers":
        return None
    sorts = [_Ranks(values) for values in (outputs.labels, outputs.predicted)]

    def score(weights: Numbers) -> Numbers:
        ranks = [ranks(weights) - (weights.sum(1, keepdims=True) + 1) / 2 for ranks in sorts]
        covariance, *spreads = (
            (weights * one * two).sum(1) for one, two in ((ranks[0], ranks[1]), (ranks[0],) * 2, (ranks[1],) * 2)
        )
        return over(covariance, np.sqrt(spreads[0]) * np.sqrt(spreads[1]))

    return score


def auc(tally: Tally) -> Scorer | None:
    """The area under the ROC curve of two classes: how often a row of class 1 has the higher score, ties half."""
    outputs = tally.outputs
    if outputs.kind != "classes" or outputs.logits is None or outputs.logits.shape[1] != 2:
        return None
    ranks, ones = _Ranks(outputs.logits[:, 1] - outputs.logits[:, 0]), outputs.labels == 1

    def score(weights: Numbers) -> Numbers:
        positive, negative = (weights[:, chosen].sum(1) for chosen in (ones, ~ones))
        sums = (ranks(weights) * weights)[:, ones].sum(1)
        return over(sums - positive * (positive + 1) / 2, positive * negative)

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


def loss(tally: Tally) -> Scorer | None:
    """The mean loss of the rows."""
    outputs = tally.outputs
    losses = row_losses(outputs)
    return None if losses is None else _of_sums(losses[:, None], _mean_of(outputs.rows))
