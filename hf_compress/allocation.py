"""Who gets how many bytes: of several things, each of which can be had smaller and worse, the choices worth making."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Option:
    """One way to have a thing: its bytes, and the error that it comes with."""

    bytes: float
    error: float


def worth_making(things: Sequence[Sequence[Option]]) -> list[tuple[int, ...]]:
    """The choices of one option of each of `things`, by number, each smaller and with more error than the one before.

    Errors of things add up. On the lower convex hull of their options a thing goes from one to the next, whichever
    thing loses the least error per byte saved: so no other choice of as few bytes has less error than one passed on
    the way (Everett, 1963; Shoham & Gersho, 1988). What lies between two of them is lost, and that is much where one
    thing is half of all, as embeddings are: so the way is gone once for each option of the largest thing, and what is
    not worse than everything smaller is kept. The first option of a thing is its largest.
    """
    largest = max(range(len(things)), key=lambda place: things[place][0].bytes, default=None)
    if largest is None:
        return [()]
    found: dict[tuple[int, ...], Option] = {}
    for number in range(len(things[largest])):
        start = [0] * len(things)
        start[largest] = number
        steps = sorted(
            (slope, place, after)
            for place, options in enumerate(things)
            if place != largest
            for slope, after in _hull(options)
        )
        ways = accumulate(steps, lambda choice, step: _with(choice, step[1], step[2]), initial=tuple(start))
        for choice in ways:
            chosen = [options[one] for options, one in zip(things, choice, strict=True)]
            found[choice] = Option(sum(one.bytes for one in chosen), sum(one.error for one in chosen))
    least, kept = float("inf"), []
    for choice, total in sorted(found.items(), key=lambda item: (item[1].error, item[1].bytes, item[0])):
        if total.bytes < least:
            least = total.bytes
            kept.append(choice)
    return kept


def _hull(options: Sequence[Option]) -> list[tuple[float, int]]:
    """The steps along the lower convex hull from the first option on: error per byte saved, and the option reached."""
    steps: list[tuple[float, int]] = []
    at = 0
    while True:
        onward = [
            ((option.error - options[at].error) / (options[at].bytes - option.bytes), -number)
            for number, option in enumerate(options)
            if option.bytes < options[at].bytes
        ]
        if not onward:
            return steps
        slope, number = min(onward)
        at = -number
        steps.append((slope, at))


def _with(choice: tuple[int, ...], place: int, option: int) -> tuple[int, ...]:
    return (*choice[:place], option, *choice[place + 1 :])
