"""The paper's claims, and whether a study reproduces them: one verdict each, from its interval."""

from typing import Any

from hf_compress.study.analysis import published
from hf_compress.study.analysis.findings import CONTROL, DISK, Findings, Spread
from hf_compress.study.analysis.panel import CONFIDENCE, Point
from hf_compress.study.analysis.ranking import Ranking
from hf_compress.study.report.tables import Column, Table

YES, NO, OPEN, SILENT = "reproduces", "does not reproduce", "inconclusive", "not enough runs"
# Claims about two or three methods together, and whether their reductions should more than multiply.
TOGETHER = (
    ("kd+mp", "distillation and pruning more than multiply", True),
    ("kd+int8", "quantization and distillation more than multiply", True),
    ("mp+int8", "pruning and quantization less than multiply", False),
    ("kd+mp+int8", "all three more than multiply", True),
)
HELPING = (("kd+mp", "distillation compensates for pruning"), ("kd+int8", "distillation compensates for quantization"))
ALL_THREE = "kd+mp+int8"


def claims(findings: Findings) -> Table:
    """Return the claims of the paper that the study can test, with verdicts."""
    rows = [_priority(ranking) for ranking in findings.rankings() if "smaller" in ranking.measure]
    together = findings.multiplicativity(DISK, CONTROL)
    for name, claim, more in TOGETHER:
        paper = f"{published.multiplicativity(name):.2f}"
        rows.append(_row(f"In size, {claim}", paper, together.get(name), ".2f", 1.0, above=more))
    sparsity = findings.sparsity
    effects = findings.interactions(sparsity)
    for name, claim in HELPING:
        found = effects.get(name)
        spread = None if found is None else Spread(found.value, found.interval)
        mean = f"{published.interaction(name, published.HEADLINE).mean():+.2f} points"
        rows.append(_row(f"In score, {claim}", mean, spread, "+.2f", 0.0, above=True))
    rows.append(_headline(findings))
    columns = (Column("claim", "the paper's claim"), Column("paper", "paper"), Column("here", "here"),
               Column("verdict", "verdict"))  # fmt: skip
    note = (
        f"A claim *reproduces* if its whole {CONFIDENCE:.0%} interval, or {CONFIDENCE:.0%} of the draws, supports "
        "it. It *does not reproduce* if they contradict it. Otherwise it is *inconclusive*. Sizes are bytes on "
        "disk unless marked analytic. Scores are compared with the control. The intervals are those of the tables "
        "below."
    )
    if findings.further:
        sets = ", ".join(f"{task} ({rows:,})" for task, rows in findings.further.items())
        note += f" The scores of {sets} are those on further labelled rows, which no training saw."
    return Table("claims", "Does the paper reproduce?", note, columns, rows)


def verdict(interval: tuple[float, float] | None, line: float, *, above: bool) -> str:
    """Return the verdict on a claim that a value is above a line (or below), from its interval.

    Example:
        >>> from hf_compress.study.report.claims import verdict
        >>> verdict((1.1, 1.3), 1.0, above=True), verdict((0.9, 1.1), 1.0, above=True)
        ('reproduces', 'inconclusive')
    """
    if interval is None:
        return SILENT
    low, high = interval
    if low > line:
        return YES if above else NO
    if high < line:
        return NO if above else YES
    return OPEN


def _row(claim: str, paper: str, found: Spread | None, form: str, line: float, *, above: bool) -> dict[str, Any]:
    if found is None:
        return {"claim": claim, "paper": paper, "here": "not measured", "verdict": SILENT}
    said = format(found.value, form)
    if found.interval is not None:
        said += f" ({found.interval[0]:{form}} to {found.interval[1]:{form}})"
    return {"claim": claim, "paper": paper, "here": said, "verdict": verdict(found.interval, line, above=above)}


def _priority(ranking: Ranking) -> dict[str, Any]:
    paper = " > ".join(published.PRIORITY)
    said, found = " > ".join(ranking.order), SILENT
    if ranking.paper is not None:
        said += f"; {paper} in a share of {ranking.paper:.2f} of the draws"
        found = YES if ranking.paper >= CONFIDENCE else NO if ranking.paper <= 1 - CONFIDENCE else OPEN
    return {"claim": f"Order of the methods: {ranking.measure}", "paper": paper, "here": said, "verdict": found}


def _headline(findings: Findings) -> dict[str, Any]:
    """Test the headline on the largest model. The paper's abstract makes it for BERT-base."""
    figure, model = published.figure1(), "BASE"
    gain = figure[Point(model, ALL_THREE, published.HEADLINE)][1] - figure[Point(model, "dense", 0.0)][1]
    point = Point(findings.full.models[0], ALL_THREE, findings.sparsity)
    places = findings.full.points
    found = findings.differences()[places.index(point)] if point in places else None
    claim = f"With all three methods the largest model ({point.model}) is no worse than dense"
    return _row(claim, f"{gain:+.2f} points ({model})", found, "+.2f", 0.0, above=True)
