"""The latency of a model as a function of its neurons and heads: a table that was measured, and what it predicts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from hf_compress.models.groups import GroupKind, Groups


@dataclass(frozen=True)
class Course:
    """The time of a model as all its blocks of one kind and size keep fewer groups, and all other blocks are whole.

    Args:
        kind: what the groups are.
        count: the number of groups of each of these blocks.
        blocks: the number of these blocks.
        kept: numbers of groups that were measured, rising; the last one is `count`.
        shares: the time with as many groups in each of these blocks, as a share of the time of the whole model. They
            never fall, and the last one is 1.

    Raises:
        ValueError: the numbers are no such course.

    Example:
        >>> from hf_compress.prune.latency import Course
        >>> Course("heads", count=12, blocks=6, kept=[1, 6, 12], shares=[0.64, 0.79, 1.0]).blocks
        6
    """

    kind: GroupKind
    count: int
    blocks: int
    kept: list[int]
    shares: list[float]

    def __post_init__(self) -> None:
        rising = _is_rising([0, *self.kept], strictly=True) and _is_rising([0, *self.shares])
        if not (rising and len(self.kept) == len(self.shares) and self.kept[-1:] == [self.count] and self.blocks > 0):
            raise ValueError(f"a course of times must rise to all {self.count} groups; got {self.kept}, {self.shares}")

    def share(self, kept: int) -> float:
        """Return the time if all these blocks keep `kept` groups, interpolated between those measured."""
        return float(np.interp(kept, self.kept, self.shares))


@dataclass(frozen=True)
class LatencyTable:
    """The latency of a model on one machine, for one shape of a batch.

    What blocks save is added up. What all save together was measured too, and the sum is scaled to meet it.

    Args:
        shape: that of the batch, in words.
        seconds: the time of the whole model.
        least: the time if every block keeps the fewest groups of its `Course`, as a share of `seconds`.
        courses: one for each kind and size of blocks.
        scheme: the number format of the graph.
        runtime: what ran the graph, with its version and threads.
        machine: the processor.

    Raises:
        ValueError: the times are not those of a model.

    Example:
        >>> from hf_compress.prune.latency import Course, LatencyTable
        >>> neurons = Course("neurons", count=8, blocks=2, kept=[2, 8], shares=[0.4, 1.0])
        >>> table = LatencyTable("1 x 128 tokens", 0.01, 0.4, (neurons,), "int8", "ONNX Runtime", "a CPU")
        >>> round(table.most, 2)
        2.5
        >>> LatencyTable.from_dict(table.to_dict()) == table
        True
    """

    shape: str
    seconds: float
    least: float
    courses: tuple[Course, ...]
    scheme: str
    runtime: str
    machine: str

    def __post_init__(self) -> None:
        if not (0 < self.least <= 1 and 0 < self.seconds < math.inf and self.courses):
            raise ValueError(
                f"a table of times needs a share in (0, 1] and a course; got {self.least} with {len(self.courses)}"
            )

    @property
    def most(self) -> float:
        """The largest speed-up: that of the fewest groups."""
        return 1 / self.least

    def saved(self, block: Groups, kept: int) -> float:
        """Return the share of the model's time that `block` saves if it keeps `kept` groups; 0 for unknown blocks."""
        course = next((one for one in self.courses if (one.kind, one.count) == (block.kind, block.count)), None)
        return 0.0 if course is None else self._scale * (1 - course.share(kept)) / course.blocks

    def speedup(self, blocks: Sequence[Groups], kept: Mapping[str, int]) -> float:
        """Return how many times faster the model is expected to be if its blocks, by name, keep so many groups."""
        return 1 / (1 - sum(self.saved(block, kept.get(block.name, block.count)) for block in blocks))

    @property
    def _scale(self) -> float:
        apart = sum(1 - course.shares[0] for course in self.courses)
        return (1 - self.least) / apart if apart > 0 else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain values."""
        return asdict(self) | {"courses": [asdict(course) for course in self.courses]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "LatencyTable":
        """Return the table that `to_dict` described."""
        return cls(**{**values, "courses": tuple(Course(**course) for course in values["courses"])})


def _is_rising(values: Sequence[float], *, strictly: bool = False) -> bool:
    """Return whether no value is smaller than the one before it; NaN is no such value."""
    return all(one < other or (one == other and not strictly) for one, other in pairwise(values))


def never_falling(values: Sequence[float]) -> list[float]:
    """Return the sequence that never falls and is closest to `values` in squares.

    Source: pool adjacent violators (Ayer et al., 1955).

    Example:
        >>> from hf_compress.prune.latency import never_falling
        >>> never_falling([1.0, 3.0, 2.0, 4.0])
        [1.0, 2.5, 2.5, 4.0]
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (high, many), (low, few) = pools[-2:]
            pools[-2:] = [((high * many + low * few) / (many + few), many + few)]
    return [mean for mean, number in pools for _ in range(number)]
