"""A study as one HTML page that needs no network and no other file."""

import json
import math
import re
from collections.abc import Mapping, Sequence, Sized
from importlib.resources import files
from typing import Any

import jinja2

from hf_compress.extras import extra
from hf_compress.study.analysis import published
from hf_compress.study.analysis.findings import Findings
from hf_compress.study.grid.combinations import COMBINATIONS
from hf_compress.study.report.tables import HIGH, LOW, Column, Table

with extra("study", "The page of a study"):
    from markupsafe import Markup, escape

TITLE = "Distillation, pruning and quantization together: what they cost and what they gain"
# Tables under one heading, how many of them are open, and which one is drawn.
GROUPS: tuple[dict[str, Any], ...] = (
    {"id": "claims", "title": "Does the paper reproduce?", "names": ("claims",)},
    {"id": "table1", "open": 3, "title": "Table 1: smaller at the same score", "names": (
        "table1-disk-control", "table1-analytic-control", "table1-paper", "table1-disk-start", "table1-analytic-start",
    )},
    {"id": "multiply", "title": "Do the methods multiply?", "names": ("multiplicativity",),
     "forest": "multiplicativity",
     "caption": "Reduction together / product of reductions, on disk, against the control; 1 means they multiply"},
    {"id": "interactions", "title": "Effects and interactions", "names": ("interactions", "gains"), "open": 2,
     "forest": "interactions", "caption": "Points of score"},
    {"id": "ranking", "title": "Which method first?", "names": ("ranking",)},
    {"id": "points", "title": "All points", "names": ("points",)},
    {"id": "paired", "title": "What can the rows tell?", "names": ("paired",), "open": 0},
    {"id": "noise", "title": "How certain is one run?", "names": ("noise",)},
    {"id": "cells", "title": "All cells", "names": ("cells",), "open": 0},
)  # fmt: skip


def page(findings: Findings, tables: Sequence[Table], made_from: str) -> str:
    """Return the page of a study; the same for the same findings.

    Args:
        findings: what the page shows.
        tables: what `contents` returned.
        made_from: names of the sources, for the last line.
    """
    by_name = {table.name: table for table in tables}
    plain = {"forest": None, "caption": "", "open": 1}
    groups = [plain | group | {"tables": [by_name[name] for name in group["names"]]} for group in GROUPS]
    folder = files("hf_compress.study.report").joinpath("page")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    measurements = findings.measurements
    lead = (
        f"{_counted(measurements, 'run')}: {_counted(findings.whole.models, 'model')}, "
        f"{_counted(findings.whole.tasks, 'task')} and {_counted(findings.combinations, 'subset')} of the three "
        f"methods, beside the figures of {published.SOURCE}. All scores and sizes are those of the compressed file "
        "after loading it again."
    )
    return environment.from_string(folder.joinpath("page.html").read_text("utf-8")).render(
        title=TITLE,
        lead=lead,
        tasks=", ".join(findings.named_tasks),
        groups=groups,
        cell=_cell,
        prose=_prose,
        css=folder.joinpath("page.css").read_text("utf-8").strip(),
        script=folder.joinpath("page.js").read_text("utf-8").strip(),
        data=Markup(_script_json(_data(findings, by_name))),
        footer=f"Made by hf-compress study report from {made_from}. Each table is also in this folder as CSV and "
        f"Parquet.",
    )


def _script_json(values: Any) -> str:
    """Return JSON for a script element. HTML has no escapes there, so JSON escapes what could end or change it."""
    text = json.dumps(_finite(values), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(values: Any) -> Any:
    """Return JSON values with None in place of NaN and infinity. Charts leave such values out."""
    if isinstance(values, dict):
        return {name: _finite(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_finite(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def _counted(things: Sized, noun: str) -> str:
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def _prose(text: str) -> Markup:
    """Return a note as HTML, with text in backticks as code."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text)))
    return Markup(re.sub(r"\*([^*]+)\*", r"<em>\1</em>", marked))


def _cell(column: Column, row: Mapping[str, Any]) -> Markup:
    """Return the text of a cell, with the interval on its own line."""
    text = column.text(row)
    if column.interval and row[column.key + LOW] is not None:
        value, _, interval = text.partition(" (")
        interval, _, remark = interval.partition(")")
        return Markup('{}{}<span class="range">{}</span>').format(value, remark, interval)
    return escape(text)


def _data(findings: Findings, tables: Mapping[str, Table]) -> dict[str, Any]:
    """Return what the charts draw."""
    ours = [
        {
            "combination": row["combination"],
            "analytic": row["analytic_mb"],
            "disk": row["disk_mb"],
            "score": row["score"],
            "text": _words(row, tables["points"]),
        }
        for row in tables["points"].rows
    ]
    paper = [
        {
            "combination": point.combination,
            "analytic": size / 1e6,
            "score": score,
            "text": f"{point.model}, {_recipe(point.combination, point.sparsity)}\n{score:.2f} at {size / 1e6:g} MB",
        }
        for point, (size, score) in published.figure1().items()
    ]
    return {
        "combinations": [name for name in COMBINATIONS if name in findings.combinations],
        "ours": ours,
        "paper": paper,
        "forests": {
            "multiplicativity": {
                "line": 1,
                "logarithmic": True,
                "rows": [_mark(row, "combination", "disk-control") for row in tables["multiplicativity"].rows],
            },
            "interactions": {
                "line": 0,
                "logarithmic": False,
                "rows": [
                    _mark(row, "term", "points")
                    for row in tables["interactions"].rows
                    if row["sparsity"] == findings.sparsity
                ],
            },
        },
    }


def _mark(row: Mapping[str, Any], name: str, key: str) -> dict[str, Any]:
    value, low, high = row[key], row[key + LOW], row[key + HIGH]
    words = "not measured" if value is None else Column(key, "", ".2f", interval=True).text(row)
    interval = None if low is None or not math.isfinite(high - low) else [low, high]
    text = f"{row[name]}\n{words}"
    return {"name": row[name], "value": value, "interval": interval, "paper": row["paper"], "text": text}


def _words(row: Mapping[str, Any], table: Table) -> str:
    difference = next(column for column in table.columns if column.key == "difference").text(row)
    lines = [
        f"{row['model']}, {_recipe(row['combination'], row['sparsity'])}",
        f"score {row['score']:.2f}" + (f", {difference} against the control" if difference else ""),
        f"{row['disk_mb']:.2f} MB on disk, analytic {row['analytic_mb']:.2f} MB",
        f"seeds: {row['seeds']}",
    ]
    return "\n".join(lines)


def _recipe(combination: str, sparsity: float) -> str:
    return f"{combination} ({100 * sparsity:g} % zeros)" if sparsity else combination
