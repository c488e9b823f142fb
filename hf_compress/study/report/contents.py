"""The tables of a study's report, filled from its findings."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hf_compress.study.analysis import published
from hf_compress.study.analysis.findings import ANALYTIC, BASELINES, CONTROL, DISK, SIZES, START, Findings, Spread
from hf_compress.study.analysis.measurement import FIELDS, to_row
from hf_compress.study.analysis.panel import FEWEST_REPEATS, FEWEST_TASKS
from hf_compress.study.analysis.reductions import TOLERANCE
from hf_compress.study.grid.combinations import COMBINATIONS, DENSE, methods_in
from hf_compress.study.report.certainty import noise, paired
from hf_compress.study.report.claims import claims
from hf_compress.study.report.tables import Column, Table, spread

ALL = "geometric mean"
BASELINE_WORDS = {
    CONTROL: "the dense model after the same training without any method",
    START: "the dense model that training started from",
}
SIZE_WORDS = {ANALYTIC: "analytic size", DISK: "bytes on disk"}


def contents(findings: Findings) -> list[Table]:
    """Return all tables, in the order of the report."""
    tables = [reductions(findings, size, baseline) for size in SIZES for baseline in BASELINES]
    makers: Sequence[Callable[[Findings], Table]] = (
        paper_reductions, multiplicativity, interactions, gains, rankings, points, paired, noise, cells,
    )  # fmt: skip
    return [claims(findings), *tables, *(make(findings) for make in makers)]


def reductions(findings: Findings, size: str, baseline: str) -> Table:
    """Return Table 1: by model and combination, how many times smaller a model can be within the tolerance."""
    table, draws = findings.reductions(size, baseline), findings.draws
    models = list(dict.fromkeys(model for model, _ in table))
    number = len(findings.full.tasks)
    rows: list[dict[str, Any]] = []
    for model in models:
        row: dict[str, Any] = {"model": model}
        for name in findings.combinations:
            value, often, found = table[model, name]
            row |= spread(name, value, draws.interval(often)) | _where(name, found, number)
        rows.append(row)
    if models:
        total: dict[str, Any] = {"model": ALL}
        for name in findings.combinations:
            value = float(np.exp(np.mean([np.log(table[model, name][0]) for model in models])))
            often = np.exp(np.mean([np.log(table[model, name][1]) for model in models], axis=0))
            found = sum(table[model, name][2] for model in models)
            total |= spread(name, value, draws.interval(often)) | _where(name, found, number * len(models))
        rows.append(total)
    columns = (
        Column("model", "dense model"),
        *(Column(name, name, ".1f", interval=True, beside=f"{name}_where") for name in findings.combinations),
    )
    note = (
        f"How many times smaller than the dense model, by {SIZE_WORDS[size]}, with a score at most {TOLERANCE:g} "
        f"points below that of {BASELINE_WORDS[baseline]}. For each task, this is the smallest of all models and "
        f"sparsities of the combination; then the mean over {_tasks(findings)}. Square brackets give the number of "
        "tasks with such a model, if not all; for the others the ratio is 1. The column `dense` shows smaller "
        f"dense models. {intervals(findings)}"
    )
    title = f"By {SIZE_WORDS[size]}, against {BASELINE_WORDS[baseline]}"
    return Table(f"table1-{size}-{baseline}", title, note, columns, rows)


def paper_reductions(findings: Findings) -> Table:
    """Return Table 1 as published."""
    names = [name for name in COMBINATIONS if name != DENSE]
    table, models = published.table1(), published.models()
    rows: list[dict[str, Any]] = [{"model": model} | {name: table[model, name] for name in names} for model in models]
    means = {name: float(np.exp(np.mean([np.log(table[model, name]) for model in models]))) for name in names}
    rows.append({"model": ALL} | means)
    note = f"{published.SOURCE}: analytic size, mean over eight GLUE tasks, without intervals. We added the last row."
    columns = (Column("model", "dense model"), *(Column(name, name, ".1f") for name in names))
    return Table("table1-paper", "Table 1 of the paper", note, columns, rows)


def multiplicativity(findings: Findings) -> Table:
    """Return the table of multiplicativity."""
    found = {(s, b): findings.multiplicativity(s, b) for s in SIZES for b in BASELINES}
    rows = []
    for name in (name for name in COMBINATIONS if len(methods_in(name)) > 1):
        row: dict[str, Any] = {"combination": name}
        for (size, baseline), values in found.items():
            row |= _spread(f"{size}-{baseline}", values.get(name))
        rows.append(row | {"paper": published.multiplicativity(name)})
    columns = [Column("combination", "combination")]
    columns += [Column(f"{s}-{b}", f"{SIZE_WORDS[s]}, {b}", ".2f", interval=True) for s in SIZES for b in BASELINES]
    columns.append(Column("paper", "paper (analytic)", ".2f"))
    note = (
        "ratio(A+B) / (ratio(A) ratio(B)) of the reductions of Table 1, geometric mean over models. Above 1, the "
        f"methods reduce more together than multiplied. Control: {BASELINE_WORDS[CONTROL]}. Start: "
        f"{BASELINE_WORDS[START]}. {intervals(findings)}"
    )
    return Table("multiplicativity", "Do the methods multiply?", note, tuple(columns), rows)


def interactions(findings: Findings) -> Table:
    """Return the table of the linear model of the score."""
    rows = []
    for sparsity in findings.sparsities:
        for name, estimate in findings.interactions(sparsity).items():
            row: dict[str, Any] = {"sparsity": sparsity, "term": " × ".join(methods_in(name))}
            rows.append(row | spread("points", estimate.value, estimate.interval) | _paper_interaction(name, sparsity))
    columns = (
        Column("sparsity", "sparsity", ".0%"), Column("term", "term"),
        Column("points", "points of score", "+.2f", interval=True), Column("paper", "paper: mean", "+.2f"),
        Column("paper_range", "paper: range over models"),
    )  # fmt: skip
    note = (
        "Least squares with one mean per model, task and seed. A single method: its effect alone. A product: the "
        "effect of the methods together beyond the sum of their parts; above 0 they help each other. 95 % "
        f"intervals are cluster-robust over tasks with Student's t ({_clusters(findings)}). The paper gives no "
        "intervals."
    )
    return Table("interactions", "Effects and interactions in the score", note, columns, rows)


def gains(findings: Findings) -> Table:
    """Return the table of what each method costs and gains."""
    rows = []
    for sparsity in findings.sparsities:
        for gain in findings.gains(sparsity):
            paper = _paper_gain(gain.method, gain.on_top_of, sparsity)
            row: dict[str, Any] = {"method": gain.method, "on_top_of": gain.on_top_of, "sparsity": sparsity}
            row |= spread("points", gain.score.value, gain.score.interval)
            rows.append(row | {"analytic": gain.analytic, "disk": gain.disk, "blocks": gain.blocks, "paper": paper})
    columns = (
        Column("method", "method"), Column("on_top_of", "on top of"), Column("sparsity", "sparsity of mp", ".0%"),
        Column("points", "points of score", "+.2f", interval=True), Column("paper", "paper: points", "+.2f"),
        Column("analytic", "times smaller, analytic", ".2f"), Column("disk", "on disk", ".2f"),
        Column("blocks", "models × tasks", "d"),
    )  # fmt: skip
    note = (
        "What a method adds to a model that already has the others, after the same training: the mean difference of "
        f"score, and the ratio of sizes. 95 % intervals as for the linear model ({_clusters(findings)})."
    )
    return Table("gains", "What each method costs and gains", note, columns, rows)


def rankings(findings: Findings) -> Table:
    """Return the table of the order of the methods."""
    rows = [
        {
            "measure": ranking.measure,
            "order": " > ".join(f"{m} {ranking.values[m]:.2f}" for m in ranking.order),
            "probability": ranking.probability,
            "first": ranking.first,
            "paper": ranking.paper,
        }
        for ranking in findings.rankings()
    ]
    columns = (
        Column("measure", "measure"), Column("order", "order found"), Column("probability", "P(this order)", ".2f"),
        Column("first", "P(first is best)", ".2f"), Column("paper", "P(int8 > kd > mp)", ".2f"),
    )  # fmt: skip
    said = "Probabilities are empty: there are not enough seeds and tasks. " if not findings.draws.over else ""
    note = (
        f"Each method alone. Probabilities are shares of bootstrap draws {_varied(findings)}; ties count for both. "
        f"{said}The paper's order is quantization, distillation, pruning."
    )
    return Table("ranking", "Which method first?", note, columns, rows)


def points(findings: Findings) -> Table:
    """Return the points of Figure 1 and the Pareto front."""
    full, differences = findings.full, findings.differences()
    fronts = {size: findings.front(size) for size in SIZES}
    rows = []
    for place, point in enumerate(full.points):
        difference, seeds = differences.get(place), full.seeds[:, place]
        few, many = int(seeds.min()), int(seeds.max())
        row: dict[str, Any] = {
            "combination": point.combination,
            "model": point.model,
            "sparsity": point.sparsity,
            "seeds": str(few) if few == many else f"{few}-{many}",
            "analytic_mb": float(full.analytic[:, place].mean()) / 1e6,
            "disk_mb": float(full.disk[:, place].mean()) / 1e6,
            "score": float(full.scores[:, place].mean()),
        }
        row |= _spread("difference", difference)
        for size, (now, share) in fronts.items():
            row[f"{size}_front"] = "yes" if now[place] else ""
            row[f"{size}_share"] = None if share is None else float(share[place])
        rows.append(row)
    columns = (
        Column("combination", "combination"), Column("model", "model"), Column("sparsity", "sparsity", ".0%"),
        Column("seeds", "seeds"), Column("analytic_mb", "analytic MB", ".2f"), Column("disk_mb", "MB on disk", ".2f"),
        Column("score", "mean score", ".2f"), Column("difference", "against the control", "+.2f", interval=True),
        Column("disk_front", "front, disk"), Column("disk_share", "share", ".2f"),
        Column("analytic_front", "front, analytic"), Column("analytic_share", "share", ".2f"),
    )  # fmt: skip
    left = len(findings.whole.points) - len(full.points)
    note = (
        f"Means over {_tasks(findings)}; 1 MB is 10⁶ bytes. The control is the same model after the same training "
        "without any method. A point is on the front if no other point is both smaller and better; the share is "
        f"that of the bootstrap draws. {left} points without all tasks or without a control are left out. "
        f"{intervals(findings)}"
    )
    return Table("points", "Figure 1 in numbers, and the Pareto front", note, columns, rows)


def cells(findings: Findings) -> Table:
    """Return all measurements. `hf-compress study suggest` reads this table."""
    columns = tuple(Column(name, name.replace("_", " "), _form(name)) for name in FIELDS)
    note = (
        "One row per run. Scores and their standard errors (`error`) are in points of 100, sizes in bytes. `score` is "
        "that on the evaluation set named `on`."
    )
    return Table("cells", "All cells", note, columns, [to_row(measurement) for measurement in findings.measurements])


def _form(name: str) -> str | None:
    """Return the format of a column of the table of cells."""
    if name.endswith(("_bytes", "rows")):
        return ",d" if name.endswith("_bytes") else "d"
    if name.endswith(("score", "error", "start")):
        return ".2f"
    return {"sparsity": ".0%", "seconds": ".0f"}.get(name)


def intervals(findings: Findings) -> str:
    """Return a sentence on what the intervals are over, or why there are none."""
    if not findings.draws.over:
        return (
            f"No intervals: not enough tasks (at least {FEWEST_TASKS}) and not enough seeds (at least "
            f"{FEWEST_REPEATS} repeated runs)."
        )
    lacking = {"tasks": "seeds", "seeds": "tasks"}.get(findings.draws.over)
    missing = f"; not enough {lacking} to draw those, so the intervals are too narrow" if lacking else ""
    return f"Brackets give 95 % bootstrap intervals {_varied(findings)}{missing}."


def _where(name: str, found: int, number: int) -> dict[str, str]:
    return {f"{name}_where": "" if found == number else f"[{found} of {number}]"}


def _spread(key: str, found: Spread | None) -> dict[str, float | None]:
    return spread(key, None, None) if found is None else spread(key, found.value, found.interval)


def _varied(findings: Findings) -> str:
    return f"over {findings.draws.over or 'nothing'}"


def _tasks(findings: Findings) -> str:
    names = findings.named_tasks
    return f"{len(names)} tasks ({', '.join(names)})" if len(names) != 1 else f"one task ({names[0]})"


def _clusters(findings: Findings) -> str:
    number = len(findings.whole.tasks)
    if number < FEWEST_TASKS:
        return f"none: {number} tasks, at least {FEWEST_TASKS} are needed"
    return f"{number} tasks"


def _paper_interaction(name: str, sparsity: float) -> dict[str, Any]:
    try:
        values = published.interaction(name, sparsity)
    except KeyError:  # The paper has 40 % and 60 % only.
        return {"paper": None, "paper_range": None}
    return {"paper": float(values.mean()), "paper_range": f"{values.min():+.2f} to {values.max():+.2f}"}


def _paper_gain(method: str, on_top_of: str, sparsity: float) -> float | None:
    try:
        return float(published.gains(method, on_top_of, sparsity).mean())
    except KeyError:
        return None
