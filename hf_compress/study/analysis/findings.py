"""All findings of a study, computed once: reductions, multiplicativity, gains, ranking, Pareto front."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from hf_compress.study.analysis import effects, reductions
from hf_compress.study.analysis.effects import Estimate, Gain
from hf_compress.study.analysis.measurement import EXTRA, Measurement
from hf_compress.study.analysis.paired import Paired, paired
from hf_compress.study.analysis.panel import Draws, Panel, complete, draw, mask, panel
from hf_compress.study.analysis.published import HEADLINE
from hf_compress.study.analysis.ranking import Ranking, rank
from hf_compress.study.grid.combinations import COMBINATIONS, METHODS, combine, methods_in, subsets

ANALYTIC, DISK = "analytic", "disk"
SIZES = (ANALYTIC, DISK)
CONTROL, START = "control", "start"
BASELINES = (CONTROL, START)
# By model and combination: the mean over tasks, the mean of each draw, the number of tasks with a reduction.
Reductions = dict[tuple[str, str], tuple[float, Float[np.ndarray, " draws"], int]]


@dataclass(frozen=True)
class Spread:
    """A number with its bootstrap interval; None where too little was measured."""

    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Findings:
    """The findings of a study, computed from its measurements.

    Means over tasks use the largest part of the study without missing cells (`full`). The linear model uses all cells.

    Example:
        >>> from hf_compress.study.analysis import Findings, read_measurements
        >>> from hf_compress.study.report.advice import shipped
        >>> findings = Findings(read_measurements(shipped()))
        >>> findings.full.tasks, findings.sparsities
        (('cola', 'mrpc', 'sst2'), (0.6,))
    """

    measurements: Sequence[Measurement]

    @cached_property
    def whole(self) -> Panel:
        """All measurements, with missing cells."""
        return panel(self.measurements)

    @cached_property
    def full(self) -> Panel:
        """The largest part without missing cells, which all means over tasks use."""
        return complete(self.whole)

    @cached_property
    def draws(self) -> Draws:
        """Bootstrap draws of `full`."""
        return draw(self.full)

    @cached_property
    def paired(self) -> list[Paired]:
        """The differences to the controls on each task, with intervals over rows, where predictions are kept."""
        return paired(self.measurements)

    @property
    def further(self) -> dict[str, int]:
        """The tasks whose scores are those of a second evaluation set, with its number of rows."""
        return {measurement.task: measurement.rows for measurement in self.measurements if measurement.on == EXTRA}

    @property
    def named_tasks(self) -> list[str]:
        """The tasks of the means, in words; those that are scored on further rows say so."""
        further = self.further
        return [f"{name} on {further[name]:,} further rows" if name in further else name for name in self.full.tasks]

    @property
    def sparsities(self) -> tuple[float, ...]:
        """The sparsities of the study, ascending."""
        return tuple(sorted({measurement.sparsity for measurement in self.measurements} - {0.0}))

    @property
    def sparsity(self) -> float:
        """The sparsity where only one can be shown: that of the paper's headlines, else the highest; 0 if none."""
        there = self.sparsities
        return HEADLINE if HEADLINE in there else max(there, default=0.0)

    @property
    def combinations(self) -> tuple[str, ...]:
        """The combinations in `full`, in the order of the paper's columns."""
        there = {point.combination for point in self.full.points}
        return tuple(name for name in COMBINATIONS if name in there)

    def reductions(self, size: str, baseline: str) -> Reductions:
        """Return reductions for one size of `SIZES` against one baseline of `BASELINES`."""
        return self._reductions[size, baseline]

    @cached_property
    def _reductions(self) -> dict[tuple[str, str], Reductions]:
        full, found = self.full, {}
        for size in SIZES:
            sizes = full.analytic if size == ANALYTIC else full.disk
            for baseline in BASELINES:
                table = {}
                for model in full.models:
                    control = next(place for place, p in enumerate(full.points) if p.model == model and p == p.dense)
                    dense = full.analytic[:, control] if size == ANALYTIC else full.dense_disk[:, control]
                    # The start is one trained model. Controls with other seeds do not show its variance.
                    fixed = full.start[:, control]
                    once = full.scores[:, control] if baseline == CONTROL else fixed
                    often = self.draws.scores[:, :, control] if baseline == CONTROL else np.broadcast_to(
                        fixed, self.draws.picked.shape
                    )  # fmt: skip
                    if np.isnan(once).any():
                        continue
                    for name in self.combinations:
                        chosen = mask(full, name)
                        small = reductions.smallest_within(full.scores[:, chosen], sizes[:, chosen], once)
                        drawn = reductions.smallest_within(self.draws.scores[:, :, chosen], sizes[:, chosen], often)
                        ratios = reductions.reduction(drawn, dense)
                        table[model, name] = (
                            float(reductions.reduction(small, dense).mean()),
                            self.draws.over_tasks(ratios),
                            int(np.isfinite(small).sum()),
                        )
                found[size, baseline] = table
        return found

    def multiplicativity(self, size: str, baseline: str) -> dict[str, Spread]:
        """Return multiplicativity by combination, where all its methods were measured."""
        table, found = self.reductions(size, baseline), {}
        models = list(dict.fromkeys(model for model, _ in table))
        for name in self.combinations:
            if len(methods_in(name)) < 2 or not set(subsets(name)) <= set(self.combinations) or not models:
                continue
            columns = (name, *methods_in(name))
            once = {column: [np.array(table[model, column][0]) for model in models] for column in columns}
            often = {column: [table[model, column][1] for model in models] for column in columns}
            value = float(reductions.multiplicativity(once, name))
            found[name] = Spread(value, self.draws.interval(reductions.multiplicativity(often, name)))
        return found

    def interactions(self, sparsity: float) -> dict[str, Estimate]:
        """Return the linear model of the scores at one sparsity."""
        return effects.interactions(self.measurements, sparsity)

    def gains(self, sparsity: float) -> list[Gain]:
        """Return what each method costs and gains on top of the others, at one sparsity."""
        rows = []
        for method in METHODS:
            for on_top_of in COMBINATIONS:
                if method not in methods_in(on_top_of):
                    combined = combine(method, *methods_in(on_top_of))
                    rows.append(effects.gains(self.measurements, method, on_top_of, combined, sparsity))
        return [gain for gain in rows if gain is not None]

    def differences(self) -> dict[int, Spread]:
        """Return, by point of `full`, its mean score minus that of the dense control of its model."""
        found = {}
        for place, point in enumerate(self.full.points):
            if point != point.dense:
                control = self.full.column(point.dense)
                once = self.full.scores[:, place] - self.full.scores[:, control]
                often = self.draws.over_tasks(self.draws.scores[:, :, place] - self.draws.scores[:, :, control])
                found[place] = Spread(float(once.mean()), self.draws.interval(often))
        return found

    def front(self, size: str) -> tuple[Bool[np.ndarray, " points"], Float[np.ndarray, " points"] | None]:
        """Return which points are on the Pareto front, and in what share of the draws (None without draws)."""
        full = self.full
        sizes = (full.analytic if size == ANALYTIC else full.disk).mean(axis=0)
        now = reductions.front(sizes, full.scores.mean(axis=0))
        if not self.draws.over:
            return now, None
        means = np.stack([self.draws.over_tasks(self.draws.scores[:, :, p]) for p in range(len(full.points))], axis=1)
        share = np.zeros(len(full.points))
        for part in np.array_split(means, max(1, len(means) // 500)):
            share += reductions.front(sizes, part).sum(axis=0)
        return now, share / len(means)

    def rankings(self) -> list[Ranking]:
        """Rank the methods by size at equal score, and by score at equal training."""
        found = []
        for size in SIZES:
            table = self.reductions(size, CONTROL)
            models = list(dict.fromkeys(model for model, _ in table))
            if models and set(METHODS) <= set(self.combinations):
                once = {m: float(np.exp(np.mean([np.log(table[model, m][0]) for model in models]))) for m in METHODS}
                often = {m: np.exp(np.mean([np.log(table[model, m][1]) for model in models], axis=0)) for m in METHODS}
                found.append(rank(f"times smaller within 0.5 points, {size}", once, often, self.draws))
        full, once, often = self.full, {}, {}
        for method in METHODS:
            wanted = self.sparsity if method == "mp" else 0.0
            places = [p for p, point in enumerate(full.points) if point[1:] == (method, wanted)]
            if places:
                controls = [full.column(full.points[place].dense) for place in places]
                once[method] = float((full.scores[:, places] - full.scores[:, controls]).mean())
                drawn = (self.draws.scores[:, :, places] - self.draws.scores[:, :, controls]).mean(axis=2)
                often[method] = self.draws.over_tasks(drawn)
        if len(once) == len(METHODS):
            measure = f"points of score against the control (mp at {100 * self.sparsity:g} %)"
            found.append(rank(measure, once, often, self.draws))
        return found
