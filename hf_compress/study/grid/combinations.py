"""The eight subsets of the three methods, by name."""

import itertools

METHODS = ("kd", "mp", "int8")
DENSE = "dense"
COMBINATIONS = tuple(
    "+".join(chosen) or DENSE for size in range(len(METHODS) + 1) for chosen in itertools.combinations(METHODS, size)
)


def parts(combination: str) -> tuple[str, ...]:
    """The methods in a combination, none for `dense`."""
    return () if combination == DENSE else tuple(combination.split("+"))


def joined(*methods: str) -> str:
    """The name of the combination of these methods, in whatever order they come."""
    return "+".join(method for method in METHODS if method in methods) or DENSE


def within(combination: str) -> tuple[str, ...]:
    """The combinations that leave something out of `combination`, from `dense` on, and it itself last."""
    chosen = set(parts(combination))
    return tuple(other for other in COMBINATIONS if chosen >= set(parts(other)))
