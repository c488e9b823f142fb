"""Scores and sizes of a study as arrays of tasks × points, and bootstrap draws of them."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from hf_compress.extras import extra
from hf_compress.study.analysis.measurement import Measurement
from hf_compress.study.grid.combinations import DENSE

with extra("study", "A study"):
    from scipy.stats import norm, t

DRAWS = 4000
# With fewer, an interval would be mostly chance.
FEWEST_TASKS = 3
FEWEST_REPEATS = 3
CONFIDENCE = 0.95


class Point(NamedTuple):
    """One point of a comparison, averaged over tasks and seeds."""

    model: str
    combination: str
    sparsity: float

    @property
    def dense(self) -> "Point":
        """The control: the same model after the same training without any method."""
        return Point(self.model, DENSE, 0.0)


@dataclass(frozen=True)
class Panel:
    """Means over seeds; NaN where there is no measurement.

    Args:
        tasks: names of the rows.
        points: names of the columns.
        scores: in points of 100.
        start: scores of the dense models that training started from.
        seeds: number of seeds of each cell.
        analytic: analytic sizes in bytes.
        disk: bytes on disk.
        dense_disk: bytes on disk of the dense fp32 file.
        residuals: per task, differences of measurements to the mean of their cell, from all cells with several seeds.
            Each is scaled by sqrt(n / (n - 1)), to the variance of one run.
        freedom: per task, degrees of freedom of the residuals.
    """

    tasks: tuple[str, ...]
    points: tuple[Point, ...]
    scores: Float[np.ndarray, "tasks points"]
    start: Float[np.ndarray, "tasks points"]
    seeds: Int[np.ndarray, "tasks points"]
    analytic: Float[np.ndarray, "tasks points"]
    disk: Float[np.ndarray, "tasks points"]
    dense_disk: Float[np.ndarray, "tasks points"]
    residuals: tuple[Float[np.ndarray, " repeats"], ...]
    freedom: tuple[int, ...]

    @property
    def models(self) -> tuple[str, ...]:
        """The models that have a dense control, the largest first."""
        dense = {point.model: self.column(point) for point in self.points if point == point.dense}
        sizes = {model: float(np.nanmean(self.analytic[:, place])) for model, place in dense.items()}
        return tuple(sorted(sizes, key=lambda model: (-sizes[model], model)))

    def column(self, point: Point) -> int:
        """Return the index of a point."""
        return self.points.index(point)

    def kept(self, tasks: Sequence[int], points: Sequence[int]) -> "Panel":
        """Return the panel of some tasks and points, by index."""
        cut = np.ix_(tasks, points)
        return Panel(
            tasks=tuple(self.tasks[place] for place in tasks),
            points=tuple(self.points[place] for place in points),
            scores=self.scores[cut],
            start=self.start[cut],
            seeds=self.seeds[cut],
            analytic=self.analytic[cut],
            disk=self.disk[cut],
            dense_disk=self.dense_disk[cut],
            residuals=tuple(self.residuals[place] for place in tasks),
            freedom=tuple(self.freedom[place] for place in tasks),
        )


def panel(measurements: Sequence[Measurement]) -> Panel:
    """Return all measurements as one panel, with NaN for missing cells."""
    tasks = tuple(sorted({measurement.task for measurement in measurements}))
    points = tuple(
        dict.fromkeys(
            Point(measurement.model, measurement.combination, measurement.sparsity) for measurement in measurements
        )
    )
    cells: dict[tuple[int, int], list[Measurement]] = {}
    for measurement in measurements:
        place = (
            tasks.index(measurement.task),
            points.index(Point(measurement.model, measurement.combination, measurement.sparsity)),
        )
        cells.setdefault(place, []).append(measurement)
    shape = (len(tasks), len(points))
    scores, start, analytic, disk, dense_disk = (np.full(shape, np.nan) for _ in range(5))
    seeds = np.zeros(shape, dtype=np.int64)
    residuals: list[list[float]] = [[] for _ in tasks]
    freedom = [0] * len(tasks)
    for place, cell in cells.items():
        values = np.array([measurement.score for measurement in cell])
        scores[place], seeds[place] = values.mean(), len(cell)
        start[place] = np.mean([np.nan if measurement.start is None else measurement.start for measurement in cell])
        analytic[place] = np.mean([measurement.analytic_bytes for measurement in cell])
        disk[place] = np.mean([measurement.packed_bytes for measurement in cell])
        dense_disk[place] = np.mean([measurement.dense_bytes for measurement in cell])
        if len(cell) > 1:
            residuals[place[0]] += list((values - values.mean()) * np.sqrt(len(cell) / (len(cell) - 1)))
            freedom[place[0]] += len(cell) - 1
    return Panel(
        tasks, points, scores, start, seeds, analytic, disk, dense_disk,
        residuals=tuple(np.array(values) for values in residuals), freedom=tuple(freedom),
    )  # fmt: skip


def complete(whole: Panel) -> Panel:
    """Return the largest part of a panel without missing cells, so that means over tasks compare the same tasks.

    Of all subsets of tasks, it takes the one with the most cells; of equal ones, that with more tasks. Points without
    their dense control are dropped.
    """
    there = whole.seeds > 0
    best: tuple[tuple[int, int], list[int], list[int]] = ((0, 0), [], [])
    for number in range(len(whole.tasks), 0, -1):
        for tasks in itertools.combinations(range(len(whole.tasks)), number):
            full = {whole.points[place] for place in np.flatnonzero(there[list(tasks)].all(axis=0))}
            points = [place for place, point in enumerate(whole.points) if point in full and point.dense in full]
            worth = (number * len(points), number)
            if worth > best[0]:
                best = (worth, list(tasks), points)
    return whole.kept(best[1], best[2])


@dataclass(frozen=True)
class Draws:
    """Bootstrap draws of a panel: its scores, and the tasks of each draw.

    Each draw takes as many tasks as there are, with replacement. It adds to each cell the mean of as many residuals of
    its task as the cell has seeds (residual bootstrap; Efron & Tibshirani, 1993, ch. 9). This assumes the same
    variance between seeds for all models of a task, so cells with one seed have it too. A task with fewer than
    `FEWEST_REPEATS` repeats uses the residuals of all tasks. With fewer than `FEWEST_TASKS` tasks, tasks are not
    drawn; without enough repeats, seeds are not drawn.

    Args:
        scores: scores of each draw.
        picked: indices of the tasks of each draw.
        over: what is drawn: "tasks", "seeds", both, or "".
        units: number of independent units, for `expanded_interval`.
    """

    scores: Float[np.ndarray, "draws tasks points"]
    picked: Int[np.ndarray, "draws tasks"]
    over: str
    units: int

    def over_tasks(self, values: Float[np.ndarray, "draws tasks"]) -> Float[np.ndarray, " draws"]:
        """Return the mean over the tasks of each draw."""
        return np.take_along_axis(values, self.picked, axis=1).mean(axis=1)

    def interval(self, values: Float[np.ndarray, " draws"]) -> tuple[float, float] | None:
        """Return the interval of a value computed for each draw; None if nothing is drawn."""
        return expanded_interval(values, self.units) if self.over else None


def draw(full: Panel, draws: int = DRAWS, seed: int = 0) -> Draws:
    """Return bootstrap draws of a panel without missing cells; the same for the same panel and seed."""
    generator = np.random.default_rng(seed)
    number = len(full.tasks)
    vary_tasks, repeats = number >= FEWEST_TASKS, sum(full.freedom)
    vary_seeds = repeats >= FEWEST_REPEATS
    picked = np.tile(np.arange(number), (draws, 1))
    if vary_tasks:
        picked = generator.integers(number, size=(draws, number))
    scores = np.repeat(full.scores[None], draws, axis=0)
    everybody = np.concatenate(full.residuals) if vary_seeds else np.zeros(0)
    for task in range(number if vary_seeds else 0):
        pool = full.residuals[task] if full.freedom[task] >= FEWEST_REPEATS else everybody
        for point, seeds in enumerate(full.seeds[task]):
            scores[:, task, point] += generator.choice(pool, (draws, int(seeds))).mean(axis=1)
    over = " and ".join(["tasks"] * vary_tasks + ["seeds"] * vary_seeds)
    return Draws(scores, picked, over, number if vary_tasks else repeats + 1)


def expanded_interval(values: Float[np.ndarray, " draws"], units: int) -> tuple[float, float]:
    """Return the expanded percentile interval (Hesterberg, 2015). The plain one is too narrow for few `units`.

    Its tails are where a normal quantile equals sqrt(n / (n - 1)) times Student's t with n - 1 degrees of freedom. For
    three tasks it covers almost the whole range of the draws.
    """
    tail = float(norm.sf(np.sqrt(units / (units - 1)) * t.ppf((1 + CONFIDENCE) / 2, units - 1)))
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def mask(full: Panel, combination: str) -> Bool[np.ndarray, " points"]:
    """Return which points have this combination, at any sparsity."""
    return np.array([point.combination == combination for point in full.points])
