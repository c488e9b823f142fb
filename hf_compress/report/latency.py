"""Latency of variants of a model, measured in turns, and ratios of such times."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """The median of the ratios of pairs.

    Args:
        ratio: the median.
        interval: the 95 % percentile interval of the median (bootstrap; Efron, 1979).
        quartiles: first and third quartile of the ratios.
    """

    ratio: float
    interval: list[float]
    quartiles: list[float]


def paired_ratio(values: Sequence[float], to: Sequence[float]) -> Ratio:
    """The ratio of `values` to `to`, which were measured pair by pair. The same numbers give the same result.

    Example:
        >>> from hf_compress.report import paired_ratio
        >>> paired_ratio([2.0, 6.0], [1.0, 3.0]).ratio
        2.0
    """
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

    Args:
        variant: its name.
        batch_size: rows of a batch.
        length: tokens of a row; None for models that take no text.
        seconds: median time of a batch.
        quartiles: first and third quartile of the time, in seconds.
        speedup: time of the baseline over time of the variant, round by round.
    """

    variant: str
    batch_size: int
    length: int | None
    seconds: float
    quartiles: list[float]
    speedup: Ratio

    @property
    def throughput(self) -> float:
        """Rows per second."""
        return self.batch_size / self.seconds

    @property
    def shape(self) -> str:
        """The shape of a batch in words."""
        return f"{self.batch_size}" if self.length is None else f"{self.batch_size} x {self.length} tokens"

    @classmethod
    def of(cls, variant: str, shape: tuple[int, int | None], seconds: list[float], baseline: list[float]) -> Self:
        """The timing of `variant` for batches of `shape` (rows, tokens), in rounds shared with the baseline."""
        middle = np.quantile(seconds, [0.25, 0.75]).tolist()
        return cls(variant, *shape, float(np.median(seconds)), middle, paired_ratio(baseline, seconds))


@dataclass(frozen=True)
class Variant:
    """A way to run a model.

    Args:
        name: its name.
        load_seconds: time to load it, measured once.
        file_bytes: bytes of the file with its weights.
    """

    name: str
    load_seconds: float
    file_bytes: int


@dataclass(frozen=True)
class Latency:
    """The measurements of one run of `hf-compress bench`.

    Args:
        baseline: the variant that speed-ups refer to.
        hardware: the processor or the GPUs.
        threads: used by every runtime.
        rounds: timed calls of each variant and shape.
        versions: of Python and the libraries.
        variants: all that were measured.
        timings: one for each variant and shape.
    """

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
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time `rounds` calls of each variant, and return the seconds by name.

    The variants take turns, one timed call each. Their order rotates every round, so that noise of the machine affects
    all of them alike. Element i of each list comes from round i (`paired_ratio`).

    Args:
        variants: functions that return when their work is done, also on a GPU.
        rounds: timed calls of each variant.
        settle: calls before each timed one that are not timed. They absorb the spinning threads and the cache contents
            of the runtime that ran before.
        after_call: called after every timed call, for a progress bar.
        clock: seconds since some moment. `time.process_time` leaves out the time in which other programs had the core;
            it is only right if the variants use one thread.

    Example:
        >>> from hf_compress.report import measure_latency
        >>> {name: len(seconds) for name, seconds in measure_latency({"nothing": lambda: None}, rounds=3).items()}
        {'nothing': 3}
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
            began = clock()
            variants[name]()
            seconds[name].append(clock() - began)
            after_call()
    return seconds
