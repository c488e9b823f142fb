"""The report of a study: tables, plots, the page, and tables quoted in a document."""

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
    """Write tables, plots and page of the results in `source` to `folder`, and return the tables.

    Args:
        source: as for `read_measurements`.
        folder: created if missing; files with the same names are replaced.
        metric: as for `read_measurements`.

    Raises:
        ValueError: there are no results, or no cell has its dense control.
    """
    findings = Findings(read_measurements(source, metric))
    if not findings.full.points:
        raise ValueError(
            "No cell has a control: the same model and task trained without any method (`dense`). There is nothing to "
            "compare. Continue the study, or add `dense` to its `methods`."
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


def quote_tables(document: str | Path, tables: Sequence[Table]) -> int:
    """Replace the tables in a Markdown file, and return how many.

    A table stands between `<!-- study NAME: begin -->` and `<!-- study NAME: end -->`.

    Raises:
        ValueError: the file or a table does not exist, or a mark has no end.
    """
    path, by_name = Path(document), {table.name: table for table in tables}
    if not path.is_file():
        raise ValueError(f"`--document` must be a Markdown file; {path} is not a file.")
    text = path.read_text("utf-8")
    for name in re.findall(r"<!-- study (\S+): begin -->", text):
        if name not in by_name:
            raise ValueError(f"{path} quotes the table {name}, which does not exist. Tables are {', '.join(by_name)}.")
        if f"<!-- study {name}: end -->" not in text:
            raise ValueError(f"{path} has no `<!-- study {name}: end -->` after the mark that begins the table.")

    def filled(match: re.Match[str]) -> str:
        return f"{match[1]}\n{by_name[match[2]].markdown()}{match[3]}"

    pattern = re.compile(r"(<!-- study (\S+): begin -->)\n.*?(<!-- study \2: end -->)", re.DOTALL)
    text, number = pattern.subn(filled, text)
    path.write_text(text, "utf-8")
    return number
