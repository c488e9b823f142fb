"""A recipe to try first, picked from the cells of a study."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from hf_compress.extras import extra
from hf_compress.study.analysis.findings import Spread
from hf_compress.study.analysis.measurement import Measurement
from hf_compress.study.analysis.measurements import SELF
from hf_compress.study.analysis.panel import CONFIDENCE, FEWEST_REPEATS, FEWEST_TASKS, Panel, Point, panel
from hf_compress.study.grid.combinations import methods_in

with extra("study", "A study"):
    from scipy.stats import t


class Weights(NamedTuple):
    """Numbers of weights of a model, in its embeddings and elsewhere."""

    embeddings: int
    others: int


@dataclass(frozen=True)
class Suggestion:
    """A recipe and what to expect of it.

    Args:
        asked: the model asked for.
        compared_to: the model of the study that stands for it.
        point: model, combination and sparsity.
        layers: number of layers to cut to; None for no cut.
        teacher: name of the teacher, or None.
        tasks: tasks of the study that were used.
        task_known: whether the task is one of the study.
        size: bytes on disk to expect.
        dense_size: bytes of the dense fp32 file.
        difference: points of score against the dense `compared_to` after the same training, with an interval.
        over: what the interval is over, or why there is none.
        cells: keys of the cells it comes from; those of the control are last.

    Example:
        >>> from hf_compress.study.analysis import read_measurements, suggest
        >>> from hf_compress.study.report.advice import shipped
        >>> advice = suggest(read_measurements(shipped()), "minilm-1", "sst2", max_bytes=14e6)
        >>> advice.point.combination, advice.task_known, advice.size <= 14e6
        ('kd+int8', True, True)
    """

    asked: str
    compared_to: str
    point: Point
    layers: int | None
    teacher: str | None
    tasks: tuple[str, ...]
    task_known: bool
    size: float
    dense_size: float
    difference: Spread
    over: str
    cells: tuple[str, ...]

    @property
    def flags(self) -> list[str]:
        """The recipe as flags for `examples/run_glue.py` and `hf-compress run`."""
        flags = [] if self.layers is None else [f"--distill_student_layers {self.layers}"]
        methods = methods_in(self.point.combination)
        if "kd" in methods:
            teacher = self.teacher if self.teacher == SELF else f"FINE-TUNED-{(self.teacher or 'teacher').upper()}"
            flags.append(f"--distill_teacher {teacher}")
        if "mp" in methods:
            flags.append(f"--prune_sparsity {self.point.sparsity:g}")
        if "int8" in methods:
            flags.append("--quant_scheme int8")
        return flags


def suggest(
    measurements: Sequence[Measurement],
    model: str,
    task: str,
    *,
    max_bytes: float | None = None,
    max_drop: float | None = None,
    weights: Weights | None = None,
) -> Suggestion:
    """Return the recipe to try first: the best one that is small enough, or the smallest one that is good enough.

    Args:
        measurements: the study.
        model: a model of the study, or a family, which stands for its largest model. Students that the study cut from
            the same checkpoint are candidates too.
        task: a task of the study. For any other task, the mean over all tasks is used.
        max_bytes: the largest file to accept.
        max_drop: the largest loss to accept, in points against the dense model after the same training.
        weights: numbers of weights, for a model that the study does not have. The model of the study nearest in size
            stands for it. Sizes come from the paper's formula, scaled by file / formula in the study.

    Raises:
        ValueError: no limit is given, a limit is out of range, the model is unknown and has no `weights`, or no
            cell meets the limits.

    Example:
        >>> from hf_compress.study.analysis import read_measurements, suggest
        >>> from hf_compress.study.report.advice import shipped
        >>> advice = suggest(read_measurements(shipped()), "minilm-1", "sst2", max_bytes=14e6)
        >>> " ".join(advice.flags)
        '--distill_teacher FINE-TUNED-MINILM --quant_scheme int8'
    """
    _check(max_bytes, max_drop)
    whole = panel(measurements)
    places = [whole.tasks.index(task)] if task in whole.tasks else list(range(len(whole.tasks)))
    known = _kept(whole, places)
    compared_to = _model(known, measurements, model, weights)
    family = {o.model: (o.family, o.layers, o.dense_bytes) for o in measurements}
    own = family[compared_to]
    candidates = []
    for place, point in enumerate(known.points):
        name, layers, dense_bytes = family[point.model]
        cut = weights is None and name == own[0] and layers is not None and dense_bytes < own[2]
        if point.combination != "dense" and (point.model == compared_to or cut):
            candidates.append(place)
    control = known.column(Point(compared_to, "dense", 0.0))
    sizes = {place: _size(known, place, weights) for place in candidates}
    drops = {place: float((known.scores[:, control] - known.scores[:, place]).mean()) for place in candidates}
    fit = [
        place
        for place in candidates
        if (max_bytes is None or sizes[place] <= max_bytes) and (max_drop is None or drops[place] <= max_drop + 1e-9)
    ]
    if not fit:
        raise ValueError(_nothing(known, candidates, sizes, drops, model))
    chosen = min(fit, key=lambda p: (sizes[p], drops[p]) if max_bytes is None else (drops[p], sizes[p]))
    point = known.points[chosen]
    difference, over = expected(known, chosen, control, known_task=task in whole.tasks)
    mine = [o for o in measurements if o.task in known.tasks]
    both = (point, known.points[control])
    cells = [o for wanted in both for o in mine if (o.model, o.combination, o.sparsity) == wanted]
    return Suggestion(
        asked=model,
        compared_to=compared_to,
        point=point,
        layers=None if point.model == compared_to and model != own[0] else family[point.model][1],
        teacher=next((o.teacher for o in cells if o.teacher is not None), None),
        tasks=known.tasks,
        task_known=task in whole.tasks,
        size=sizes[chosen],
        dense_size=float(known.dense_disk[:, control].mean()) if weights is None else 4.0 * sum(weights),
        difference=difference,
        over=over,
        cells=tuple(o.key for o in cells),
    )


def expected(known: Panel, place: int, control: int, *, known_task: bool) -> tuple[Spread, str]:
    """Return the difference of a point's score to that of a control, with its interval, and what the interval is over.

    For a task of the study: Student's t with the variance between seeds of that task, pooled over its cells. For
    another task: the range expected for a further task, from at least `FEWEST_TASKS` tasks.
    """
    differences = known.scores[:, place] - known.scores[:, control]
    value = float(differences.mean())
    if not known_task:
        number = len(differences)
        if number < FEWEST_TASKS:
            return Spread(value, None), "not enough tasks"
        reach = _student(number - 1) * float(differences.std(ddof=1)) * np.sqrt(1 + 1 / number)
        return Spread(value, (value - reach, value + reach)), "another task"
    freedom = sum(known.freedom)
    if freedom < FEWEST_REPEATS:
        return Spread(value, None), "not enough seeds"
    variances: Float[np.ndarray, " tasks"] = np.array([np.mean(residuals**2) for residuals in known.residuals])
    runs = 1 / known.seeds[:, place] + 1 / known.seeds[:, control]
    reach = _student(freedom) * float(np.sqrt(np.sum(variances * runs)) / len(differences))
    return Spread(value, (value - reach, value + reach)), "seeds"


def _student(freedom: int) -> float:
    return float(t.ppf((1 + CONFIDENCE) / 2, freedom))


def _check(max_bytes: float | None, max_drop: float | None) -> None:
    if max_bytes is None and max_drop is None:
        raise ValueError("Give a limit: `--max-size 10MB`, `--max-drop 0.5` (points of score), or both.")
    for option, value in (("--max-size", max_bytes), ("--max-drop", max_drop)):
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"`{option}` must be 0 or more; got {value:g}.")


def _kept(whole: Panel, tasks: Sequence[int]) -> Panel:
    """Return these tasks, with the points that were measured on all of them."""
    points = np.flatnonzero((whole.seeds[list(tasks)] > 0).all(axis=0)).tolist()
    return whole.kept(tasks, points)


def _model(known: Panel, measurements: Sequence[Measurement], model: str, weights: Weights | None) -> str:
    """Return the model of the study that stands for the one asked for."""
    there = known.models
    if model in there:
        return model
    family = [name for name in there if any(o.family == model and o.model == name for o in measurements)]
    if family:
        return family[0]
    if weights is None or not there:
        raise ValueError(
            f"`--model` must be a model that the study has for this task ({', '.join(there) or 'it has none'}), or a "
            f"folder or Hub id with a configuration; got {model!r}."
        )
    controls = {name: known.analytic[:, known.column(Point(name, "dense", 0.0))].mean() for name in there}
    return min(there, key=lambda name: abs(np.log(controls[name] / (4 * sum(weights)))))


def _size(known: Panel, place: int, weights: Weights | None) -> float:
    """Return the bytes on disk of a point, or those that a model with other weights would have."""
    disk = float(known.disk[:, place].mean())
    if weights is None:
        return disk
    point = known.points[place]
    byte = 1 if "int8" in methods_in(point.combination) else 4
    analytic = byte * (weights.embeddings + (1 - point.sparsity) * weights.others)
    return analytic * disk / float(known.analytic[:, place].mean())


def _nothing(
    known: Panel, candidates: Sequence[int], sizes: dict[int, float], drops: dict[int, float], model: str
) -> str:
    if not candidates:
        return f"The study has no compressed {model} for {', '.join(known.tasks)}. Give other `--results`."
    small, good = min(candidates, key=sizes.__getitem__), min(candidates, key=drops.__getitem__)
    said = [
        f"{known.points[place].model} with {known.points[place].combination} ({sizes[place] / 1e6:.1f} MB, "
        f"{-drops[place]:+.2f} points)"
        for place in (small, good)
    ]
    return (
        f"No cell of the study meets these limits for {model}. The smallest is {said[0]}, the best {said[1]}. Relax "
        "a limit, or start from another model."
    )
