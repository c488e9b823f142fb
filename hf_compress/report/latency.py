"""How long variants of a model take, measured in turns, and the ratios of such times."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios of all pairs.

    `interval` is the 95 % percentile interval of that median (bootstrap; Efron, 1979), `quartiles` the middle half of
    the ratios themselves.
    """

    ratio: float
    interval: list[float]
    quartiles: list[float]


def paired_ratio(values: Sequence[float], to: Sequence[float]) -> Ratio:
    """The ratio of `values` to `to`, whose elements were measured pair by pair; the same for the same numbers."""
    ratios = np.array(values) / np.array(to)
    draw = np.random.default_rng(0)
    medians = np.median(draw.choice(ratios, (RESAMPLES, len(ratios))), axis=1)
    return Ratio(
        ratio=float(np.median(ratios)),
        interval=np.quantile(medians, [0.025, 0.975]).tolist(),
        quartiles=np.quantile(ratios, [0.25, 0.75]).tolist(),
    )


WARM_UP = 3


@dataclass(frozen=True)
class Timing:
    """The time of one variant for batches of one shape.

    `seconds` is the median of a batch and `quartiles` its middle half. `speedup` is the time of the baseline over that
    of the variant, round by round.
    """

    variant: str
    batch_size: int
    length: int
    seconds: float
    quartiles: list[float]
    speedup: Ratio

    @property
    def throughput(self) -> float:
        """Sequences per second."""
        return self.batch_size / self.seconds

    @classmethod
    def of(cls, variant: str, shape: tuple[int, int], seconds: list[float], baseline: list[float]) -> Self:
        """The timing of `variant` for batches of `shape` (rows, tokens), in rounds shared with the baseline."""
        middle = np.quantile(seconds, [0.25, 0.75]).tolist()
        return cls(variant, *shape, float(np.median(seconds)), middle, paired_ratio(baseline, seconds))


@dataclass(frozen=True)
class Variant:
    """A way to run a model: the seconds that it took to load, once, and the bytes of the file with its weights."""

    name: str
    load_seconds: float
    file_bytes: int


@dataclass(frozen=True)
class Latency:
    """What `hf-compress bench` measured in one run; `baseline` is the variant that speed-ups refer to."""

    baseline: str
    hardware: str
    threads: int
    rounds: int
    versions: dict[str, str]
    variants: list[Variant]
    timings: list[Timing]


def measure_latency(
    variants: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    settle: int = 1,
    after_call: Callable[[], Any] = lambda: None,
) -> dict[str, list[float]]:
    """The seconds of `rounds` calls of each variant, by its name.

    The variants take turns, one timed call each, in an order that rotates every round, so that noise of the machine
    hits all alike: element by element their times belong together (`paired_ratio`).

    Args:
        variants: functions that return when their work is done, also that of a GPU.
        rounds: how many timed calls of each.
        settle: calls before each timed one, which are not timed. Threads of the runtime before it, that still spin,
            and its data in the caches then count for no one.
        after_call: called after every timed call, for a progress bar.
    """
    names = list(variants)
    for _ in range(WARM_UP):
        for run in variants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            for _ in range(settle):
                variants[name]()
            began = time.perf_counter()
            variants[name]()
            seconds[name].append(time.perf_counter() - began)
            after_call()
    return seconds
