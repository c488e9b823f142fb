"""Names and numbers are escaped on the page, in plots and in Markdown."""

import dataclasses
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from hf_compress.study.analysis.findings import Findings
from hf_compress.study.analysis.measurements import read_measurements
from hf_compress.study.report.contents import contents
from hf_compress.study.report.page import page
from hf_compress.study.report.plots import PLOTS
from hf_compress_cli import app
from tests.study.pages import Page

Write = Callable[..., Path]
runner = CliRunner(env={"COLUMNS": "160"})


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory, write_results: Write) -> Findings:
    file = write_results(tmp_path_factory.mktemp("results") / "plain.jsonl", seeds={1: 3})
    return Findings(read_measurements(file))


NASTY = (
    "<!--<script>", "</script><b>", "<img src=x onerror=document.title='hacked'>", "two\nlines | and a pipe",
    "\u2028", "$\\bad$", "<!-- study ranking: end -->", "`code` *stars*",
)  # fmt: skip


@pytest.fixture(scope="module")
def hostile(write_results: Write, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a study whose tasks, models, teachers and files have hostile names."""
    folder = tmp_path_factory.mktemp("hostile")
    file = write_results(folder / "<i>.jsonl", tasks=("cola", "mrpc", *NASTY[:6]), layers=(3, 1))
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        line["cell"]["model"] = NASTY[line["cell"]["layers"] % len(NASTY)] + NASTY[2]
        line["cell"]["teacher"] = line["cell"]["teacher"] and NASTY[6]
    lines[0]["report"]["compressed"]["accuracy"] = "nan"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    document = folder / "document.md"
    document.write_text("".join(f"<!-- study {name}: begin -->\n<!-- study {name}: end -->\n" for name in QUOTED))
    arguments = ["study", "report", str(file), "--out", str(folder / "report"), "--document", str(document)]
    for _ in range(2):  # Marks inside names must not confuse the second time.
        result = runner.invoke(app, arguments)
        assert result.exit_code == 0, result.output
    return folder


QUOTED = ("points", "cells", "table1-disk-control")


def test_hostile_names_stay_text_on_the_page(hostile: Path) -> None:
    text = (hostile / "report" / "index.html").read_text()
    read = Page()
    read.feed(text)
    assert read.open == [] and read.loaded == []
    assert read.tags == {"script": 2, "b": 0, "img": 0, "i": 0}
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert not set("<>&\u2028\u2029") & set(data)
    assert NASTY[2] in json.loads(data)["ours"][0]["text"]


def test_the_page_has_no_number_that_json_lacks(hostile: Path, findings: Findings) -> None:
    broken = [dataclasses.replace(table, rows=[_spoil(row) for row in table.rows]) for table in contents(findings)]
    for text in ((hostile / "report" / "index.html").read_text(), page(findings, broken, "results")):
        (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
        json.loads(data, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def _spoil(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float("nan") if isinstance(value, float) else value for name, value in row.items()}


def test_hostile_names_stay_inside_their_markdown_cells(hostile: Path) -> None:
    text = (hostile / "document.md").read_text()
    for name in QUOTED:
        (quoted,) = re.findall(rf"<!-- study {name}: begin -->\n(.*?)\n<!-- study {name}: end -->", text, re.DOTALL)
        rows = [line for line in quoted.splitlines() if line.startswith("|")]
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1, name
        assert "<" not in quoted and not any(line.startswith(("two", "lines")) for line in quoted.splitlines())


def test_hostile_names_survive_the_table_of_cells(hostile: Path) -> None:
    read = read_measurements(hostile / "report" / "cells.csv")
    assert read == read_measurements(hostile / "<i>.jsonl")


def test_hostile_names_are_drawn_as_they_are(hostile: Path) -> None:
    for name in PLOTS:
        ElementTree.fromstring((hostile / "report" / f"{name}.svg").read_text())


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("spoilt", [False, True])
def test_the_page_is_drawn_in_a_browser(hostile: Path, findings: Findings, spoilt: bool, tmp_path: Path) -> None:
    file = hostile / "report" / "index.html"
    if spoilt:
        tables = contents(findings)
        broken = [dataclasses.replace(table, rows=[*table.rows[1:], *map(_spoil, table.rows[:1])]) for table in tables]
        file = tmp_path / "index.html"
        file.write_text(page(findings, broken, "results"), "utf-8")
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom",
               "--virtual-time-budget=3000", file.as_uri()]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "<title>hacked" not in dom and dom.count('class="legend"') == 1
    charts = re.findall(r'<div class="chart[^>]*data-(?:chart|forest)="(\w+)"[^>]*>(.*?)</div>', dom, re.DOTALL)
    assert {name: "<circle" in chart for name, chart in charts} == dict.fromkeys(
        ("ours", "paper", "multiplicativity", "interactions"), True
    )
    assert "NaN" not in dom.partition("<script")[0]
