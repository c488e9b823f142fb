"""Names of the eight subsets of the three methods."""

import itertools

METHODS = ("kd", "mp", "int8")
DENSE = "dense"
COMBINATIONS = tuple(
    "+".join(chosen) or DENSE for size in range(len(METHODS) + 1) for chosen in itertools.combinations(METHODS, size)
)


def methods_in(combination: str) -> tuple[str, ...]:
    """Return the methods in a combination; none for "dense".

    Example:
        >>> from hf_compress.study.grid.combinations import methods_in
        >>> methods_in("kd+int8")
        ('kd', 'int8')
    """
    return () if combination == DENSE else tuple(combination.split("+"))


def combine(*methods: str) -> str:
    """Return the name of the combination of these methods, given in any order.

    Example:
        >>> from hf_compress.study.grid.combinations import combine
        >>> combine("int8", "kd"), combine()
        ('kd+int8', 'dense')
    """
    return "+".join(method for method in METHODS if method in methods) or DENSE


def subsets(combination: str) -> tuple[str, ...]:
    """Return all subsets of a combination, from "dense" to the combination itself.

    Example:
        >>> from hf_compress.study.grid.combinations import subsets
        >>> subsets("kd+mp")
        ('dense', 'kd', 'mp', 'kd+mp')
    """
    chosen = set(methods_in(combination))
    return tuple(other for other in COMBINATIONS if chosen >= set(methods_in(other)))
