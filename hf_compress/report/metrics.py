"""Metrics of predictions of rows, computed for many weightings of the rows at once, as a bootstrap needs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from hf_compress.report import formulas
from hf_compress.report.formulas import ClassScore, Maker, Scorer
from hf_compress.report.tally import Tally

TOLERANCE = 1e-6
# Scores nearer to 0 are compared as if they were this large.
SMALLEST = 0.1
# Losses and correlations are computed in float32.
FLOAT32 = 1e-5
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
    scorer: Maker
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


def _averages(word: str, score: ClassScore) -> list[Metric]:
    """F1, precision or recall in every way to average it, those that scripts use most first."""
    return [
        Metric((word,), formulas.of_entities(score, formulas.micro), counts_entities=True),
        Metric((word,), formulas.of_classes(partial(formulas.positive, score), ("classes",), most=2)),
        *(
            Metric((word,), formulas.of_classes(partial(each, score)))
            for each in (formulas.macro, formulas.weighted, formulas.micro)
        ),
        *(
            Metric((word,), formulas.of_classes(partial(average, score), ("flags",)))
            for average in (formulas.micro, formulas.all_macro, formulas.weighted)
        ),
        Metric((word,), formulas.of_entities(score, formulas.macro), counts_entities=True),
        Metric((word,), formulas.of_entities(score, formulas.weighted), counts_entities=True),
    ]


ACCURACY = Metric(("acc", "exact"), formulas.accuracy)
METRICS: tuple[Metric, ...] = (
    Metric(("loss",), formulas.loss, tolerance=FLOAT32),
    ACCURACY,
    Metric(("acc",), formulas.of_classes(formulas.balanced)),
    Metric(("acc", "hamming"), formulas.each_flag),
    *_averages("f1", formulas.f1),
    *_averages("precision", formulas.precision),
    *_averages("recall", formulas.recall),
    Metric(("matthews", "mcc"), formulas.of_classes(formulas.matthews)),
    Metric(("kappa",), formulas.of_classes(formulas.kappa)),
    Metric(("auc",), formulas.auc),
    Metric(("pearson", "corr"), formulas.of_numbers(formulas.moments, formulas.correlation), tolerance=FLOAT32),
    Metric(("spearman", "corr"), formulas.spearman),
    Metric(("mse", "squared"), formulas.of_numbers(lambda a, b: [(a - b) ** 2], lambda sums: sums[:, 0] / sums[:, 1])),
    Metric(("mse", "squared"), formulas.of_numbers(lambda a, b: [(a - b) ** 2], lambda s: np.sqrt(s[:, 0] / s[:, 1]))),
    Metric(("mae", "absolute"), formulas.of_numbers(lambda a, b: [abs(a - b)], lambda sums: sums[:, 0] / sums[:, 1])),
    Metric(
        ("r2", "r_squared"),
        formulas.of_numbers(
            lambda a, b: [(a - b) ** 2, a - a.mean(), (a - a.mean()) ** 2],
            lambda sums: 1 - formulas.over(sums[:, 0], sums[:, 2] - sums[:, 1] ** 2 / sums[:, 3]),
        ),
    ),
)
