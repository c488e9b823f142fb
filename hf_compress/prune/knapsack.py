"""Spend a budget where it counts: one option for each of several things, with the least loss that it allows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# A budget is counted in this many steps, so that neighbouring choices differ by one small thing.
STEPS = 4096


@dataclass(frozen=True)
class Option:
    """One option for a thing.

    Args:
        cost: what it takes of the budget, at least 0.
        loss: what is lost by it.
    """

    cost: float
    loss: float


def least_loss(things: Sequence[Sequence[Option]], budget: float) -> list[int] | None:
    """Return the number of one option for each of `things`, with the least sum of losses; None if none fits.

    The costs of the options add up to at most `budget`. Costs above those of the cheapest options are counted in steps
    of 1 / 4096 of what these leave of the budget, and rounded up. No choice whose counted costs fit has less loss.
    Of equal losses, the option that comes first is taken.

    Source: dynamic programming for the multiple-choice knapsack (Kellerer, Pferschy & Pisinger, 2004, ch. 11), as
    Shen et al. (2022, HALP) use it for the latency of networks.

    Example:
        >>> from hf_compress.prune.knapsack import Option, least_loss
        >>> whole, half = Option(cost=4, loss=0), Option(cost=2, loss=1)
        >>> least_loss([[whole, half], [whole, Option(cost=2, loss=5)]], budget=6)
        [1, 0]
        >>> least_loss([[whole, half]], budget=1) is None
        True
    """
    cheapest = [min(option.cost for option in options) for options in things]
    room = budget - sum(cheapest)
    if room < -1e-9 * max(budget, 1.0):
        return None
    step = max(room, 0.0) / STEPS
    least, picks = np.zeros(STEPS + 1), []
    for lowest, options in zip(cheapest, things, strict=True):
        moves = [_steps(option.cost - lowest, step) for option in options]
        found = np.full((len(options), STEPS + 1), np.inf)
        for row, move, option in zip(found, moves, options, strict=True):
            if move <= STEPS:
                row[move:] = least[: STEPS + 1 - move] + option.loss
        picks.append((found.argmin(0), moves))
        least = found.min(0)
    place, chosen = STEPS, []
    for pick, moves in reversed(picks):
        chosen.append(int(pick[place]))
        place -= moves[chosen[-1]]
    return chosen[::-1]


def _steps(cost: float, step: float) -> int:
    if cost <= 0:
        return 0
    return math.ceil(cost / step - 1e-9) if cost <= 2 * STEPS * step else STEPS + 1
