"""Which method goes first, and how sure that is."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from hf_compress.study.analysis.panel import Draws
from hf_compress.study.analysis.published import PRIORITY


@dataclass(frozen=True)
class Ranking:
    """The methods by one measure, the best first.

    The probability of an order is the share of draws that have it; `first` is that of the method named first being the
    best, `paper` that of the paper's order. All are None where nothing could be varied.
    """

    measure: str
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float] | None]
    order: tuple[str, ...]
    probability: float | None
    first: float | None
    paper: float | None


def rank(
    measure: str, values: Mapping[str, float], drawn: Mapping[str, Float[np.ndarray, " draws"]], draws: Draws
) -> Ranking:
    """The methods by `values`, of which more is better, with the probabilities from what was `drawn` for each."""
    order = tuple(sorted(values, key=lambda method: -values[method]))
    varied = bool(draws.over)
    best = np.stack([drawn[method] for method in order]).max(axis=0)
    return Ranking(
        measure,
        values,
        {method: draws.interval(drawn[method]) for method in order},
        order,
        share_in_order(drawn, order) if varied else None,
        float((drawn[order[0]] >= best).mean()) if varied else None,
        share_in_order(drawn, PRIORITY) if varied else None,
    )


def share_in_order(drawn: Mapping[str, Float[np.ndarray, " draws"]], order: tuple[str, ...]) -> float:
    """The share of draws in which each method is at least as good as the next one of `order`."""
    pairs = itertools.pairwise(order)
    return float(np.all([drawn[better] >= drawn[worse] for better, worse in pairs], axis=0).mean())
