"""Intervals of scores and of differences of scores: what the rows of an evaluation set can tell."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

import numpy as np

from hf_compress.report.formulas import Numbers, Scorer

Key = TypeVar("Key", bound=Hashable)

LEVEL = 0.95
DRAWS = 2000
SEED = 0
# Weights in memory at once, in float64.
MOST_WEIGHTS = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A score, or the difference of two scores, with the interval that the evaluation rows allow.

    Args:
        value: the score or the difference, in the unit of the metric (an accuracy is between 0 and 1).
        low: the lower end of the interval.
        high: the upper end of the interval.
        level: the share of such intervals that hold the true value, for example 0.95.
        method: how the interval was computed, in words.
        units: what the metric counts, in the plural: "rows", "tokens", "entities".
        count: how many of these units the evaluation set has.
        p_value: for the difference of two accuracies, the p-value of McNemar's exact test that both models are right
            equally often; None for anything else.

    Example:
        >>> from hf_compress.report.intervals import Interval
        >>> Interval(-0.004, -0.012, 0.004, 0.95, "paired bootstrap", "rows", 872).excludes_zero
        False
    """

    value: float
    low: float
    high: float
    level: float
    method: str
    units: str
    count: int
    p_value: float | None = None

    @property
    def excludes_zero(self) -> bool:
        """Whether zero is outside the interval, so that the rows show a difference."""
        return self.low > 0 or self.high < 0


def bootstrap(scorers: Mapping[Key, Scorer], rows: int, *, draws: int = DRAWS, seed: int = SEED) -> dict[Key, Numbers]:
    """The scores of `draws` resamples of the rows, with replacement, by the keys of `scorers`.

    All scorers see the same resamples, so the differences of their scores are paired. Rows are drawn whole, because
    the tokens of one sentence depend on each other.

    Args:
        scorers: functions from weights of shape (draws, rows) to scores of shape (draws,).
        rows: the number of rows.
        draws: the number of resamples.
        seed: the same seed gives the same resamples.

    Example:
        >>> import numpy as np
        >>> from hf_compress.report.intervals import bootstrap
        >>> values = np.arange(10.0)
        >>> scores = bootstrap({"mean": lambda weights: weights @ values / 10}, rows=10)["mean"]
        >>> bool(abs(scores.mean() - 4.5) < 0.1)
        True
    """
    generator = np.random.default_rng(seed)
    scores: dict[Key, list[Numbers]] = {name: [] for name in scorers}
    at_once = max(1, MOST_WEIGHTS // max(rows, 1))
    for first in range(0, draws, at_once):
        weights = np.empty((min(at_once, draws - first), rows))
        for weight in weights:
            weight[:] = np.bincount(generator.integers(rows, size=rows), minlength=rows)
        for name, scorer in scorers.items():
            scores[name].append(scorer(weights))
    return {name: np.concatenate(parts) for name, parts in scores.items()}


def ends(scores: Numbers, level: float = LEVEL) -> tuple[float, float]:
    """The percentile interval of bootstrap scores (Efron & Tibshirani, 1993, ch. 13).

    Example:
        >>> import numpy as np
        >>> from hf_compress.report.intervals import ends
        >>> [round(end, 6) for end in ends(np.arange(101.0), level=0.9)]
        [5.0, 95.0]
    """
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def wilson(right: int, count: int, level: float = LEVEL) -> tuple[float, float]:
    """The interval of a share of independent rows (Wilson, 1927, eq. 3).

    Example:
        >>> from hf_compress.report.intervals import wilson
        >>> [round(end, 4) for end in wilson(81, 263)]
        [0.2553, 0.3662]
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    share, spread = right / count, z * z / count
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    centre = share + spread / 2
    # At the ends of the range the formula is exact, and floating point is not.
    low = 0.0 if right == 0 else (centre - half) / (1 + spread)
    high = 1.0 if right == count else (centre + half) / (1 + spread)
    return low, high


def mcnemar(one_alone: int, other_alone: int) -> float:
    """The p-value of McNemar's exact test, two-sided: both models are right equally often (McNemar, 1947).

    Args:
        one_alone: rows that the first model has right and the second has wrong.
        other_alone: rows that the second model has right and the first has wrong.

    Example:
        >>> from hf_compress.report.intervals import mcnemar
        >>> mcnemar(1, 5)
        0.21875
    """
    count, fewer = one_alone + other_alone, min(one_alone, other_alone)
    ways, term = 0, 1
    for number in range(fewer + 1):
        ways += term
        term = term * (count - number) // (number + 1)
    return min(1.0, 2 * ways / 2**count)
