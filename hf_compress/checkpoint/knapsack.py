"""Distribute bytes over several things with smaller, worse options: find the choices on the Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# The savings are counted in this many steps: so fine that neighbouring choices differ by one small thing.
STEPS = 4096


@dataclass(frozen=True)
class Option:
    """One option for a thing: its bytes and its error."""

    bytes: float
    error: float


def worth_making(things: Sequence[Sequence[Option]]) -> list[tuple[int, ...]]:
    """Return the choices on the Pareto front, each smaller and with more error than the one before.

    A choice holds the number of one option for each of `things`. Errors add up. Dynamic programming over the saved
    bytes solves it as a knapsack, as Malinovskii et al. (2024) do for the bits of layers. No other choice has less
    error in as many bytes, up to the step in which bytes are counted. The first choice has the least error, the last
    one the fewest bytes.
    """
    largest = [max(option.bytes for option in options) for options in things]
    saved = [
        np.array([most - option.bytes for option in options]) for most, options in zip(largest, things, strict=True)
    ]
    step = sum(one.max() for one in saved) / STEPS or 1.0
    least, picks = np.zeros(1), []
    for savings, options in zip(saved, things, strict=True):
        moves = np.rint(savings / step).astype(int)
        found = np.full((len(options), len(least) + moves.max()), np.inf)
        for row, move, option in zip(found, moves, options, strict=True):
            row[move : move + len(least)] = least + option.error
        picks.append((found.argmin(0), moves))
        least = found.min(0)
    place = np.flatnonzero(np.isfinite(least))
    numbers = np.empty((len(place), len(things)), dtype=int)
    for thing in reversed(range(len(things))):
        pick, moves = picks[thing]
        numbers[:, thing] = pick[place]
        place = place - moves[numbers[:, thing]]
    choices = sorted((_total(things, choice), choice) for choice in map(tuple, numbers.tolist()))
    fewest, kept = np.inf, []
    for (_, size), choice in choices:
        if size < fewest:
            fewest = size
            kept.append(choice)
    return kept


def _total(things: Sequence[Sequence[Option]], choice: Sequence[int]) -> tuple[float, float]:
    """Return the error and the bytes of a choice."""
    chosen = [options[number] for options, number in zip(things, choice, strict=True)]
    return sum(option.error for option in chosen), sum(option.bytes for option in chosen)
