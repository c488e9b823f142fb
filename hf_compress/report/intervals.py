"""Intervals of scores and of differences of scores: what the rows of an evaluation set can tell."""

from dataclasses import dataclass


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
