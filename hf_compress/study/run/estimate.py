"""Estimates of the remaining time, from nodes that are done."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from hf_compress.study.grid.plan import Cell, DenseModel, Plan


def seconds_left(plan: Plan, to_do: Iterable[str], took: Mapping[str, float]) -> float | None:
    """Return the seconds that nodes will take one after the other; None if no similar node has run.

    A node is expected to take the mean of the most similar ones: those of the same size, task and methods,
    otherwise of the same size and task, otherwise of the same task, otherwise of all.

    Args:
        plan: the nodes.
        to_do: keys of the nodes to run.
        took: seconds of nodes that are done, by key.
    """
    sums: defaultdict[tuple[Any, ...], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for key, seconds in took.items():
        for kind in _kinds(_node(plan, key)):
            sums[kind][0] += seconds
            sums[kind][1] += 1
    total = 0.0
    for key in to_do:
        alike = next((sums[kind] for kind in _kinds(_node(plan, key)) if kind in sums), None)
        if alike is None:
            return None
        total += alike[0] / alike[1]
    return total


def in_words(seconds: float | None) -> str:
    """Return a duration in words.

    Example:
        >>> from hf_compress.study.run.estimate import in_words
        >>> in_words(600.0)
        '10 min'
    """
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _node(plan: Plan, key: str) -> DenseModel | Cell:
    return plan.dense[key] if key in plan.dense else plan.cells[key]


def _kinds(node: DenseModel | Cell) -> list[tuple[Any, ...]]:
    methods = node.methods if isinstance(node, Cell) else None
    size = (node.model, node.layers)
    return [(node.task, size, methods), (node.task, size), (node.task,), ()]
