"""Who gets how many bytes: of several things, each of which can be had smaller and worse, the choices worth making."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Into so many steps what can be saved is divided: fine enough that neighbouring choices differ by a small thing.
STEPS = 4096


@dataclass(frozen=True)
class Option:
    """One way to have a thing: its bytes, and the error that it comes with."""

    bytes: float
    error: float


def worth_making(things: Sequence[Sequence[Option]]) -> list[tuple[int, ...]]:
    """The choices of one option of each of `things`, by number, each smaller and with more error than the one before.

    Errors add up. By dynamic programming over what is saved, thing by thing (a knapsack; so do Malinovskii et al.,
    2024, with the bits of layers), no choice has less error for as many bytes, but for what is lost by counting bytes
    in steps. The first has the least error of all, the last the fewest bytes.
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
    """The error and the bytes of a choice."""
    chosen = [options[number] for options, number in zip(things, choice, strict=True)]
    return sum(option.error for option in chosen), sum(option.bytes for option in chosen)
