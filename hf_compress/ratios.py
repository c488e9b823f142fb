"""Ratios of numbers that were measured in pairs, with their spread."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios of all pairs.

    `interval` is the 95 % percentile interval of that median (bootstrap; Efron, 1979), `quartiles` the middle half of
    the ratios themselves.
    """

    ratio: float
    interval: list[float]
    quartiles: list[float]


def paired_ratio(values: Sequence[float], to: Sequence[float]) -> Ratio:
    """The ratio of `values` to `to`, whose elements were measured pair by pair; the same for the same numbers."""
    ratios = np.array(values) / np.array(to)
    draw = np.random.default_rng(0)
    medians = np.median(draw.choice(ratios, (RESAMPLES, len(ratios))), axis=1)
    return Ratio(
        ratio=float(np.median(ratios)),
        interval=np.quantile(medians, [0.025, 0.975]).tolist(),
        quartiles=np.quantile(ratios, [0.25, 0.75]).tolist(),
    )
