"""The gate before a push: whether a compressed model lost too much, or misses what its run promised."""

import math
from collections.abc import Iterator
from dataclasses import replace

from hf_compress.layers.grids import SCHEMES
from hf_compress.report.extra_set import sharper
from hf_compress.report.report import Report
from hf_compress.report.scores import points_per_unit, sign_of_better
from hf_compress.report.structure import layers_short
from hf_compress.report.units import human_bytes, percent

ACCEPT, REGRESSION = "ACCEPT", "REGRESSION"
# Of a program whose result is a regression; 1 and 2 are failures and misuse.
EXIT_STATUS = 3
# Sparsity counts whole weights, and a layer has at least hundreds of them.
SPARSITY_TOLERANCE = 1e-3


def check_max_drop(max_drop: float | None) -> None:
    """Refuse a limit that is not a number of points.

    Raises:
        ValueError: it is negative or not finite.
    """
    if max_drop is not None and not (math.isfinite(max_drop) and max_drop >= 0):
        raise ValueError(
            f"`--compress_max_drop` must be a finite number of points, 0 or more; got {max_drop}. Give 1 to allow the "
            "main metric to fall by one point, for example from 92.3 % to 91.3 %."
        )


def drop(report: Report) -> float | None:
    """How far the main metric fell from the dense to the compressed model, in points; None without a dense model.

    A point is a hundredth of a score that is a share of one, and one unit of any other score. A loss or an error falls
    when it rises. Of two evaluation sets, that with more rows counts (`sharper`).

    Example:
        >>> from hf_compress.report.gate import drop
        >>> from hf_compress.report.report import Report
        >>> drop(Report.load("run/compressed"))  # doctest: +SKIP
        0.8
    """
    report = sharper(report)
    if report.dense is None:
        return None
    name = report.main_metric
    change = report.compressed[name] - report.dense[name]
    return -_sign(report) * _points(report) * change


def verdict(report: Report, max_drop: float) -> tuple[str, list[str]]:
    """`ACCEPT` or `REGRESSION`, and what it rests on, in sentences.

    A model is a regression if its main metric fell by more than `max_drop` points, if a format that was asked for is
    missing, or if its file misses the sparsity or the size that its recipe promised. The measured drop decides, and
    its interval is said beside it. A drop that nobody measured is a regression too.

    Args:
        report: of the finished model.
        max_drop: the largest drop that is allowed, in points (see `drop`).

    Raises:
        ValueError: `max_drop` is negative or not finite.

    Example:
        >>> from hf_compress.report import verdict
        >>> verdict(report, max_drop=1.0)[0]  # doctest: +SKIP
        'ACCEPT'
    """
    check_max_drop(max_drop)
    lost = drop(report)
    # A difference such as 0.01 of two shares is not exact in floating point.
    too_much = lost is None or lost > max_drop + 1e-9
    broken = list(_broken_promises(report))
    return REGRESSION if too_much or broken else ACCEPT, [*_drop_words(report, max_drop), *broken]


def judged(report: Report, max_drop: float | None) -> Report:
    """`report` with the verdict that `max_drop` gives, and the reasons; without one if there is no limit."""
    if max_drop is None:
        return replace(report, max_drop=None, verdict=None, reasons=[])
    word, reasons = verdict(report, max_drop)
    return replace(report, max_drop=max_drop, verdict=word, reasons=reasons)


def exit_status(report: Report | None) -> int:
    """The exit status for a program that made `report`: 3 if it is a regression, else 0.

    Example:
        >>> import sys
        >>> import hf_compress
        >>> sys.exit(hf_compress.exit_status(report))  # doctest: +SKIP
    """
    return EXIT_STATUS if report is not None and report.verdict == REGRESSION else 0


def what_to_try(report: Report) -> str:
    """What to change so that the next run loses less, in a sentence; after the recipe of `report`.

    Example:
        >>> from hf_compress.report.gate import what_to_try
        >>> print(what_to_try(report))  # doctest: +SKIP
        Try more training (`--num_train_epochs 6`), or less sparsity (`--prune_sparsity 0.5`).
    """
    lost = drop(report)
    tries = [f"a run without `{name}` in `--compress_formats`" for name in report.failed_formats]
    if lost is None:
        tries.append("a start from a model that is fine-tuned for the task, which is then the dense model")
    elif lost > (report.max_drop or 0):
        tries = [*tries, *_gentler(report)]
    elif not tries:
        tries = list(_longer(report))
    return f"Try {', or '.join(tries)}." if tries else "Compare it with another seed (`--seed`)."


def _drop_words(report: Report, max_drop: float) -> Iterator[str]:
    """The drop of the main metric, its interval and the limit."""
    where = "" if report.extra is None else _rows_words(report)
    report = sharper(report)
    name, lost, allowed = report.main_metric, drop(report), _allowed(report, max_drop)
    if lost is None:
        yield f"Nobody knows how far the {name} fell, because no dense model was scored. {allowed}."
        return
    change, unit = -lost * _sign(report), _unit(report)
    way = "equal to" if change == 0 else f"{abs(change):.2f}{unit} {'above' if change > 0 else 'below'}"
    interval, factor = report.comparison.get(name), _points(report)
    said = ""
    if interval is not None:
        low, high = factor * interval.low, factor * interval.high
        said = f" ({100 * interval.level:g} % interval: {low:+.2f} to {high:+.2f}{unit})"
    yield f"The {name} of the compressed model is {way} that of the dense model{where}{said}. {allowed}."


def _rows_words(report: Report) -> str:
    """Which of two evaluation sets counts, in words."""
    dataset = sharper(report).dataset
    further = "further " if sharper(report) is not report else ""
    return f" on {dataset.eval_rows:,} {further}rows (split {dataset.eval_split})"


def _broken_promises(report: Report) -> Iterator[str]:
    for name, why in report.failed_formats.items():
        yield f"The format `{name}` was asked for and is missing: {why}"
    pruning, budget = report.recipe.pruning, report.recipe.budget
    promised = pruning.prune_sparsity if report.promised_sparsity is None else report.promised_sparsity
    if pruning.enabled and report.achieved_sparsity < promised - SPARSITY_TOLERANCE:
        yield (f"The recipe promises {percent(promised)} zeros, and the file has {percent(report.achieved_sparsity)}.")
    if short := layers_short(report.depth, pruning):
        asked = pruning.prune_layers
        yield f"The recipe promises {asked} dropped layers, and {asked - short} were dropped."
    speed = report.speed
    if speed is not None and speed.missed:
        yield (
            f"The recipe promises a graph that is {speed.target:g} times faster, and it is {speed.measured.ratio:.2f} "
            "times faster."
        )
    if budget.enabled and report.size.packed_bytes > budget.bytes:
        yield (
            f"The recipe promises a file of at most {human_bytes(round(budget.bytes))}, and it has "
            f"{human_bytes(report.size.packed_bytes)}."
        )


def _gentler(report: Report) -> Iterator[str]:
    """What makes a compression lose less, the cheapest first."""
    recipe, step = report.recipe, report.recipe.quantization.quant_step
    if not recipe.distillation.enabled:
        yield "distillation (`--distill_teacher self`)"
    yield from _longer(report)
    if recipe.budget.enabled:
        if recipe.pruning.enabled:
            yield "the same size without zeros (leave `--prune_sparsity` out)"
        more = 1.25 * float(recipe.budget.compress_budget_mb or 0)
        yield f"a larger file (`--compress_budget_mb {more:.3g}`)"
    else:
        if recipe.speed.compress_speedup is not None:
            slower = 1 + 0.75 * (recipe.speed.compress_speedup - 1)
            yield f"a slower graph (`--compress_speedup {slower:.2g}`)"
        elif recipe.pruning.enabled and not recipe.pruning.prune_keep:
            less = max(0.0, recipe.pruning.prune_sparsity - 0.1)
            yield f"less sparsity (`--prune_sparsity {less:.2g}`)"
        if step is not None:
            yield f"finer steps (`--quant_step {0.8 * step:.3g}`)"
        elif recipe.quantization.quant_bits:
            yield f"more bits (`--quant_scheme {recipe.quantization.quant_scheme}` without `--quant_bits`)"
        elif recipe.quantization.enabled and recipe.quantization.quant_scheme != "int8-weight":
            gentler = "int8-weight" if SCHEMES[str(recipe.quantization.quant_scheme)].weight.bits >= 8 else "int8"
            yield f"more bits (`--quant_scheme {gentler}`)"
    if recipe.pruning.prune_layers:
        yield f"fewer dropped layers (`--prune_layers {recipe.pruning.prune_layers - 1}`)"
    if recipe.distillation.student_layers is not None:
        yield "more layers (`--distill_student_layers`)"


def _longer(report: Report) -> Iterator[str]:
    """More training, by the option that ended this one."""
    for option in ("max_steps", "num_train_epochs"):
        if value := report.hyperparameters.get(option):
            yield f"more training (`--{option} {2 * float(value):g}`)"
            return


def _allowed(report: Report, max_drop: float) -> str:
    unit = _unit(report)
    what = "drop" if _sign(report) > 0 else "rise"
    return f"A {what} of at most {max_drop:g}{unit.removesuffix('s') if max_drop == 1 else unit} is allowed"


def _points(report: Report) -> int:
    """Points in one unit of the main metric."""
    scores = (scores[report.main_metric] for scores in (report.dense, report.compressed) if scores is not None)
    return points_per_unit(report.main_metric, scores)


def _sign(report: Report) -> int:
    """1 if a higher main metric is better, else -1."""
    return -1 if report.greater_is_better is False else sign_of_better(report.main_metric)


def _unit(report: Report) -> str:
    return " points" if _sign(report) > 0 else ""
