"""A report has the same numbers in every form, and says where there is too little data."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from hf_compress.study.analysis.findings import CONTROL, DISK, Findings
from hf_compress.study.analysis.measurement import Measurement
from hf_compress.study.analysis.measurements import read_measurements
from hf_compress.study.report.claims import claims, verdict
from hf_compress.study.report.contents import contents
from hf_compress.study.report.page import page
from hf_compress.study.report.plots import PLOTS
from hf_compress.study.report.reporting import quote_tables
from hf_compress.study.report.tables import Column, Table
from hf_compress_cli import app
from tests.study.pages import Page

Write = Callable[..., Path]
Make = Callable[..., list[Measurement]]
runner = CliRunner(env={"COLUMNS": "160"})


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, write_results: Write) -> Path:
    """Results with three seeds of the smallest model."""
    return write_results(tmp_path_factory.mktemp("results") / "synthetic.jsonl.zst", seeds={1: 3})


@pytest.fixture(scope="module")
def findings(results: Path) -> Findings:
    return Findings(read_measurements(results))


@pytest.fixture(scope="module")
def written(results: Path) -> Path:
    """The report that the command wrote from these results, and quoted in a document beside them."""
    folder, document = results.parent / "report", results.parent / "study.md"
    document.write_text(
        "# Study\n\n<!-- study ranking: begin -->\nold\n<!-- study ranking: end -->\n\nWords \\1 stay.\n"
    )
    result = runner.invoke(app, ["study", "report", str(results), "--out", str(folder), "--document", str(document)])
    assert result.exit_code == 0, result.output
    assert str(folder / "index.html") in result.stdout and "1 tables replaced" in result.stdout
    return folder


def test_csv_and_parquet_have_the_same_numbers(written: Path, findings: Findings) -> None:
    for table in contents(findings):
        with (written / f"{table.name}.csv").open() as file:
            rows = list(csv.DictReader(file))
        packed = parquet.read_table(written / f"{table.name}.parquet").to_pylist()
        assert len(rows) == len(packed) == len(table.rows)
        assert rows or table.name == "paired", "these results keep no predictions"
        for text, row in zip(rows, packed, strict=True):
            assert text == {name: "" if value is None else str(value) for name, value in row.items()}


def test_plots_are_there_as_vector_and_as_png(written: Path) -> None:
    for name in PLOTS:
        assert "<svg" in (written / f"{name}.svg").read_text()
        assert (written / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_results_give_the_same_files(written: Path, results: Path, tmp_path: Path) -> None:
    document = results.parent / "study.md"
    before = document.read_text()
    arguments = ["study", "report", str(results), "--out", str(tmp_path), "--document", str(document)]
    assert runner.invoke(app, arguments).exit_code == 0
    assert document.read_text() == before
    names = {file.name for file in written.iterdir()}
    assert names == {file.name for file in tmp_path.iterdir()}
    for name in names:
        assert (written / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_the_page_needs_nothing_but_itself(written: Path, findings: Findings) -> None:
    text = (written / "index.html").read_text()
    read = Page()
    read.feed(text)
    assert read.loaded == [] and read.open == []
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|https?://(?!www\.w3\.org/)", text)
    assert read.cells == sum(len(table.rows) * len(table.columns) for table in contents(findings))


def test_the_charts_are_drawn_from_what_the_tables_say(written: Path, findings: Findings) -> None:
    text = (written / "index.html").read_text()
    match = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    data = json.loads(match[1])
    assert len(data["ours"]) == 24 and len(data["paper"]) == 72
    full = findings.full
    for place, point in enumerate(full.points):
        drawn = data["ours"][place]
        assert (drawn["combination"], drawn["score"]) == (point.combination, full.scores[:, place].mean())
        assert point.model in drawn["text"] and "MB on disk" in drawn["text"]
    rows = {row["name"]: row for row in data["forests"]["multiplicativity"]["rows"]}
    found = findings.multiplicativity(DISK, CONTROL)["kd+mp"]
    assert (rows["kd+mp"]["value"], rows["kd+mp"]["interval"]) == (found.value, list(found.interval or ()))
    assert rows["kd+mp"]["paper"] == pytest.approx(1.22, abs=0.005)


def test_names_in_results_cannot_break_out_of_the_page(make_measurements: Make) -> None:
    measurements = make_measurements(tasks=("</script><b>", "cola", "sst2"))
    findings = Findings(measurements)
    text = page(findings, contents(findings), "<i>")
    read = Page()
    read.feed(text)
    assert read.open == [] and "<b>" not in text and "<i>" not in text


def test_simulated_effects_are_reported(make_measurements: Make) -> None:
    findings = Findings(make_measurements(noise=0.0))
    tables = {table.name: table for table in contents(findings)}
    reported = {row["term"]: row["points"] for row in tables["interactions"].rows}
    assert reported["kd"] == pytest.approx(1.0) and reported["kd × mp"] == pytest.approx(0.8)
    (score,) = [row for row in tables["ranking"].rows if "points of score" in row["measure"]]
    assert score["order"] == "kd 1.00 > int8 -0.50 > mp -2.00" and score["probability"] == 1.0
    by_hand = {
        row["dense model"] if "dense model" in row else row["model"]: row
        for row in tables["table1-analytic-control"].rows
    }
    # Smaller dense models score 2 or 3 points less, so only the same model with int8 is within 0.5 points.
    assert by_hand["synthetic-6"]["int8"] == pytest.approx(4.0)
    assert by_hand["synthetic-6"]["mp_where"] == "[0 of 3]" and by_hand["synthetic-6"]["mp"] == 1.0


@pytest.mark.parametrize(
    ("interval", "above", "said"),
    [
        ((1.1, 1.3), True, "reproduces"),
        ((1.1, 1.3), False, "does not reproduce"),
        ((0.7, 0.9), False, "reproduces"),
        ((0.7, 0.9), True, "does not reproduce"),
        ((0.9, 1.1), True, "inconclusive"),
        (None, True, "not enough runs"),
    ],
)
def test_a_claim_is_judged_by_where_its_interval_lies(
    interval: tuple[float, float] | None, above: bool, said: str
) -> None:
    assert verdict(interval, 1.0, above=above) == said


def test_verdicts_follow_simulated_effects(make_measurements: Make) -> None:
    sure = {row["claim"]: row for row in claims(Findings(make_measurements(noise=0.01, seeds={1: 3}))).rows}
    assert sure["In score, distillation compensates for pruning"]["verdict"] == "reproduces"
    assert sure["In score, distillation compensates for quantization"]["verdict"] == "inconclusive"
    (headline,) = [row for claim, row in sure.items() if "largest model" in claim]
    assert headline["verdict"] == "does not reproduce"
    assert float(headline["here"].split()[0]) == pytest.approx(-0.7, abs=0.05)
    few = claims(Findings(make_measurements(tasks=("sst2",)))).rows
    assert {row["verdict"] for row in few} == {"not enough runs"}


def test_the_front_holds_what_is_smallest_and_what_is_best(findings: Findings) -> None:
    now, share = findings.front(DISK)
    sizes, scores = findings.full.disk.mean(axis=0), findings.full.scores.mean(axis=0)
    assert now[np.lexsort((-scores, sizes))[0]] and now[np.lexsort((sizes, -scores))[0]] and not now.all()
    assert share is not None and (share >= 0).all() and (share <= 1).all()


def test_too_few_tasks_and_seeds_are_reported(make_measurements: Make) -> None:
    findings = Findings(make_measurements(tasks=("sst2",)))
    tables = {table.name: table for table in contents(findings)}
    assert "not enough tasks" in tables["multiplicativity"].note and "not enough seeds" in tables["points"].note
    assert all(row["points_low"] is None for row in tables["interactions"].rows)
    assert all(row["probability"] is None for row in tables["ranking"].rows)
    assert "not enough seeds" in tables["ranking"].note
    assert [row["deviation"] for row in tables["noise"].rows] == ["not enough seeds"]
    assert "not enough seeds to draw" in {t.name: t for t in contents(Findings(make_measurements()))}["points"].note
    page(findings, list(tables.values()), "results")


def test_an_unfinished_study_can_be_reported(make_measurements: Make) -> None:
    measurements = make_measurements(seeds={1: 3})
    started = Findings(measurements[: len(measurements) // 2])
    assert page(started, contents(started), "results")
    few = Findings([o for o in measurements if o.combination in ("dense", "mp")])
    tables = {table.name: table for table in contents(few)}
    assert [row["term"] for row in tables["interactions"].rows] == ["mp"] and not tables["ranking"].rows
    assert page(few, list(tables.values()), "results")
    without = Findings([o for o in measurements if "mp" not in o.combination])
    assert page(without, contents(without), "results")


def test_a_study_without_controls_is_refused(write_results: Write, tmp_path: Path) -> None:
    file = write_results(tmp_path / "results.jsonl")
    file.write_text("".join(line + "\n" for line in file.read_text().splitlines() if '"methods": "dense"' not in line))
    result = runner.invoke(app, ["study", "report", str(file), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1 and "nothing to compare" in result.stderr and "Traceback" not in result.output


def test_a_document_quotes_tables_and_keeps_the_rest(written: Path) -> None:
    text = (written.parent / "study.md").read_text()
    assert text.startswith("# Study\n") and text.endswith("Words \\1 stay.\n")
    assert "| measure | order found |" in text and "old" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!-- study nothing: begin -->", "quotes the table nothing"),
        (b"<!-- study points: begin -->", "has no `<!-- study points: end -->`"),
        (b"\xff", "is not text in UTF-8"),
        (None, "is not a file"),
    ],
)
def test_a_bad_document_is_refused_before_writing(
    results: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    document = tmp_path / "study.md"
    if content is not None:
        document.write_bytes(content)
    arguments = ["study", "report", str(results), "--out", str(tmp_path / "out"), "--document", str(document)]
    result = runner.invoke(app, arguments)
    assert result.exit_code == 1 and message in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file_is_refused(results: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    result = runner.invoke(app, ["study", "report", str(results), "--out", str(tmp_path / "out")])
    assert result.exit_code == 1 and "`--out`" in result.stderr and "Traceback" not in result.output


def test_quoting_a_missing_table_is_refused(tmp_path: Path) -> None:
    table = Table("known", "Known", "A note.", (Column("a", "a"),), [{"a": 1}])
    document = tmp_path / "study.md"
    with pytest.raises(ValueError, match="is not a file"):
        quote_tables(document, [table])
    document.write_text("<!-- study other: begin -->\n<!-- study other: end -->\n")
    with pytest.raises(ValueError, match="quotes the table other, which does not exist. Tables are known"):
        quote_tables(document, [table])
    document.write_text("<!-- study known: begin -->\n")
    with pytest.raises(ValueError, match="no `<!-- study known: end -->`"):
        quote_tables(document, [table])


def test_a_number_is_written_with_its_interval_and_its_remark() -> None:
    column = Column("x", "x", ".1f", interval=True, beside="y")
    assert column.text({"x": 1.0, "x_low": 0.5, "x_high": 2.0, "y": "[1 of 3]"}) == "1.0 (0.5 to 2.0) [1 of 3]"
    assert column.text({"x": 1.0, "x_low": None, "x_high": None, "y": ""}) == "1.0"
    assert column.text({"x": None, "x_low": None, "x_high": None, "y": ""}) == ""
