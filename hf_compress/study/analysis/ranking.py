"""The order of the methods, and how certain it is."""

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

    Args:
        measure: what is compared.
        values: value of each method; more is better.
        intervals: interval of each value.
        order: the methods, the best first.
        probability: share of draws with this order; None without draws.
        first: share of draws in which the first method is the best.
        paper: share of draws with the paper's order.
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
    """Rank methods by `values`, more is better, with probabilities from the draws of each method."""
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
    """Return the share of draws in which each method is at least as good as the next one of `order`.

    Example:
        >>> import numpy as np
        >>> from hf_compress.study.analysis.ranking import share_in_order
        >>> share_in_order({"kd": np.array([1.0, 2.0]), "mp": np.array([0.0, 3.0])}, ("kd", "mp"))
        0.5
    """
    pairs = itertools.pairwise(order)
    return float(np.all([drawn[better] >= drawn[worse] for better, worse in pairs], axis=0).mean())
