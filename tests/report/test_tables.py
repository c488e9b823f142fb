"""Tables of reports: every number comes from the report, and rows stand in order of size."""

import dataclasses
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from hf_compress.report.report import Report
from hf_compress.report.tables import HEADINGS, comparison_table, markdown_table, report_rows
from hf_compress_cli import app
from tests.golden.reports import golden_reports


@pytest.fixture
def report() -> Report:
    return Report.load(Path(__file__).parents[1] / "golden")


def _smaller(report: Report) -> Report:
    return dataclasses.replace(report, size=dataclasses.replace(report.size, packed_bytes=10_000_000))


def test_a_row_has_megabytes_and_points(report: Report) -> None:
    (row,) = report_rows([report])
    cells = dict(zip(HEADINGS, row, strict=True))
    score, dense = report.compressed[report.main_metric], report.dense[report.main_metric]
    assert cells["methods"] == report.recipe.name
    assert float(cells["MB"]) == pytest.approx(report.size.packed_bytes / 1e6, abs=0.005)
    assert float(cells["difference"].split()[0]) == pytest.approx(100 * (score - dense), abs=0.005)
    assert cells["difference"].endswith("(-0.80 to +1.38)") and cells["rows"] == "872"
    assert cells["smaller"] == f"{report.size.dense_bytes / report.size.packed_bytes:.2f}x"


def test_rows_are_ordered_by_task_and_falling_size(report: Report) -> None:
    other = dataclasses.replace(report, task="cola")
    tasks = [row[0] for row in report_rows([report, other])]
    sizes = [row[2] for row in report_rows([_smaller(report), report])]
    assert tasks == ["cola", report.task]
    assert float(sizes[0]) > float(sizes[1])


def test_the_markdown_table_has_a_line_for_each_report(report: Report) -> None:
    lines = markdown_table([report, _smaller(report)]).splitlines()
    assert len(lines) == 4
    assert "to control" not in lines[0]
    assert all(line.count("|") == len(HEADINGS) for line in lines)


def test_the_table_compares_on_the_set_with_more_rows() -> None:
    report = golden_reports()["further"]
    (row,) = report_rows([report])
    cells = dict(zip(HEADINGS, row, strict=True))
    assert cells["compressed"] == "accuracy 86.41" and cells["rows"] == "10,000"
    assert cells["to control"] == "-0.47 (-0.81 to -0.14)"
    assert "to control" in markdown_table([report])


def test_the_table_of_a_run_has_a_row_for_each_set() -> None:
    output = StringIO()
    Console(file=output, width=160).print(comparison_table(golden_reports()["further"]))
    shown = output.getvalue()
    assert "accuracy, 10,000 further rows" in shown and "-0.0047" in shown and "+0.0024" in shown


def test_inspect_compares_several_folders(report: Report, tmp_path: Path) -> None:
    report.save(tmp_path)
    shown = CliRunner().invoke(app, ["inspect", str(tmp_path), str(tmp_path)])
    assert shown.exit_code == 0 and shown.output.count(report.recipe.name) == 2
    (tmp_path / "empty").mkdir()
    refused = CliRunner().invoke(app, ["inspect", str(tmp_path), str(tmp_path / "empty")])
    assert refused.exit_code == 1 and "holds no report.json" in refused.output
