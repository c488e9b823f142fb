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


def write_report(
    source: str | Path | Sequence[str | Path],
    folder: str | Path,
    *,
    metric: str = PAPER,
    documents: Sequence[str | Path] = (),
) -> list[Table]:
    """Write tables, plots and page of the results in `source` to `folder`, and return the tables.

    Args:
        source: as for `read_measurements`.
        folder: created if missing; files with the same names are replaced.
        metric: as for `read_measurements`.
        documents: Markdown files that will quote the tables. They are checked before anything is written.

    Raises:
        ValueError: there are no results, no cell has its dense control, or a document is invalid.

    Example:
        >>> from hf_compress.study.report import write_report
        >>> from hf_compress.study.report.advice import shipped
        >>> [table.name for table in write_report(shipped(), "page")]
        ['claims', ..., 'cells']
    """
    findings = Findings(read_measurements(source, metric))
    if not findings.full.points:
        raise ValueError(
            "No cell has a control: the same model and task trained without any method (`dense`). There is nothing to "
            "compare. Continue the study, or add `dense` to its `methods`."
        )
    folder, tables = Path(folder), contents(findings)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"`--out` must be a folder; {folder} is a file.")
    for document in documents:
        _filled(Path(document), tables)
    folder.mkdir(parents=True, exist_ok=True)
    for table in tables:
        table.save(folder)
    draw_all(findings, folder)
    sources = [source] if isinstance(source, str | Path) else source
    names = ", ".join(Path(each).name for each in sources)
    (folder / PAGE).write_text(page(findings, tables, names), "utf-8")
    return tables


def quote_tables(document: str | Path, tables: Sequence[Table]) -> int:
    r"""Replace the tables in a Markdown file, and return how many.

    Each table is between `<!-- study NAME: begin -->` and `<!-- study NAME: end -->`.

    Raises:
        ValueError: the file or a table does not exist, or a mark has no end.

    Example:
        >>> from pathlib import Path
        >>> from hf_compress.study.analysis import Findings, read_measurements
        >>> from hf_compress.study.report import quote_tables
        >>> from hf_compress.study.report.advice import shipped
        >>> from hf_compress.study.report.contents import contents
        >>> tables = contents(Findings(read_measurements(shipped())))
        >>> _ = Path("RESULTS.md").write_text("<!-- study claims: begin -->\n<!-- study claims: end -->\n")
        >>> quote_tables("RESULTS.md", tables)
        1
        >>> Path("RESULTS.md").read_text().splitlines()[1]
        "| the paper's claim | paper | here | verdict |"
    """
    path = Path(document)
    text, number = _filled(path, tables)
    path.write_text(text, "utf-8")
    return number


def _filled(path: Path, tables: Sequence[Table]) -> tuple[str, int]:
    """Return the text of a document with its tables replaced, and how many there are."""
    by_name = {table.name: table for table in tables}
    if not path.is_file():
        raise ValueError(f"`--document` must be a Markdown file; {path} is not a file.")
    try:
        text = path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"`--document` must be a Markdown file; {path} is not text in UTF-8: {error}.") from error
    for name in re.findall(r"<!-- study (\S+): begin -->", text):
        if name not in by_name:
            raise ValueError(f"{path} quotes the table {name}, which does not exist. Tables are {', '.join(by_name)}.")
        if f"<!-- study {name}: end -->" not in text:
            raise ValueError(f"{path} has no `<!-- study {name}: end -->` after the mark that begins the table.")

    def filled(match: re.Match[str]) -> str:
        return f"{match[1]}\n{by_name[match[2]].markdown()}{match[3]}"

    pattern = re.compile(r"(<!-- study (\S+): begin -->)\n.*?(<!-- study \2: end -->)", re.DOTALL)
    return pattern.subn(filled, text)
