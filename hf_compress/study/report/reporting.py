"""The report of a study: tables, plots, the page, and the numbers in a document that quotes them."""

import re
from collections.abc import Sequence
from pathlib import Path

from hf_compress.study.analysis.findings import Findings
from hf_compress.study.analysis.measurements import PAPER, read_measurements
from hf_compress.study.report.contents import contents
from hf_compress.study.report.page import page
from hf_compress.study.report.plots import draw_all
from hf_compress.study.report.tables import Table

PAGE = "index.html"


def write_report(source: str | Path | Sequence[str | Path], folder: str | Path, *, metric: str = PAPER) -> list[Table]:
    """The tables of the report on the results in `source`, written into `folder` with plots and page.

    Args:
        source: as for `read_measurements`.
        folder: made if it is not there; files of these names in it are replaced.
        metric: as for `read_measurements`.

    Raises:
        ValueError: there are no results, or not a single cell with its dense control.
    """
    findings = Findings(read_measurements(source, metric))
    if not findings.full.points:
        raise ValueError(
            "There is no cell whose model and task were also trained without any method (`dense`), so there is "
            "nothing to compare. Let the study go on, or add `dense` to its `methods`."
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tables = contents(findings)
    for table in tables:
        table.save(folder)
    draw_all(findings, folder)
    sources = [source] if isinstance(source, str | Path) else source
    names = ", ".join(Path(each).name for each in sources)
    (folder / PAGE).write_text(page(findings, tables, names), "utf-8")
    return tables


def quote(document: str | Path, tables: Sequence[Table]) -> int:
    """How many tables were put into the Markdown file `document`, each between its marks.

    The marks are `<!-- study NAME: begin -->` and `<!-- study NAME: end -->` for the table of that name; what stands
    between them is replaced.

    Raises:
        ValueError: there is no such file or no such table, or a mark has no end.
    """
    path, by_name = Path(document), {table.name: table for table in tables}
    if not path.is_file():
        raise ValueError(f"`--document` must be a Markdown file; there is none at {path}.")
    text = path.read_text("utf-8")
    for name in re.findall(r"<!-- study (\S+): begin -->", text):
        if name not in by_name:
            raise ValueError(f"{path} quotes the table {name}, but there are only {', '.join(by_name)}.")
        if f"<!-- study {name}: end -->" not in text:
            raise ValueError(f"{path} has no `<!-- study {name}: end -->` after where that begins.")

    def filled(match: re.Match[str]) -> str:
        return f"{match[1]}\n{by_name[match[2]].markdown()}{match[3]}"

    pattern = re.compile(r"(<!-- study (\S+): begin -->)\n.*?(<!-- study \2: end -->)", re.DOTALL)
    text, number = pattern.subn(filled, text)
    path.write_text(text, "utf-8")
    return number
