"""`hf-compress study collect` never loses a result, and touches nothing when it refuses."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hf_compress.study.run.engine import run_plan
from hf_compress.study.run.results import read_results
from hf_compress.study.run.store import Store
from hf_compress.study.run.workers import SerialWorkers
from hf_compress_cli import app
from tests.study.stub import Stub, planned

runner = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a finished study of six cells in `out`."""
    monkeypatch.chdir(tmp_path)
    store = Store("out")
    run_plan(planned(methods=["dense"]), store, SerialWorkers(Stub(tmp_path / "diary"), store))
    return tmp_path


def collect(*arguments: str) -> tuple[int, str]:
    result = runner.invoke(app, ["study", "collect", *arguments])
    return result.exit_code, result.output


@pytest.mark.parametrize("folder", ["TYPO", "empty", "diary"])
def test_a_folder_without_results_is_refused(study: Path, folder: str) -> None:
    (study / "empty").mkdir()
    assert collect("out", "results.jsonl")[0] == 0
    before = (study / "results.jsonl").read_bytes()
    status, said = collect(folder, "results.jsonl")
    assert status == 1 and said.startswith("Error: ") and folder in said and said.count("\n") == 1
    assert (study / "results.jsonl").read_bytes() == before
    assert not (study / "TYPO").exists() and not list((study / "empty").iterdir())


def test_results_are_never_replaced_by_fewer(study: Path) -> None:
    collect("out", "results.jsonl")
    whole = read_results("results.jsonl")
    (study / "out" / whole[0].cell.key / "report.json").unlink()
    status, said = collect("out", "results.jsonl")
    assert status == 1 and "results.jsonl has 1 result that is not in out" in said
    assert read_results("results.jsonl") == whole
    assert collect("out", "results.jsonl", "--results", "results.jsonl")[0] == 0
    assert read_results("results.jsonl") == whole


def test_a_file_of_something_else_is_not_replaced(study: Path) -> None:
    (study / "notes.txt").write_text("my notes")
    status, said = collect("out", "notes.txt")
    assert status == 1 and "not a file of results" in said
    assert (study / "notes.txt").read_text() == "my notes"


def test_a_file_that_cannot_be_written_stays_as_it_was(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect("out", "results.jsonl.zst")
    before = (study / "results.jsonl.zst").read_bytes()

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "replace", full)
    assert collect("out", "results.jsonl.zst")[0] == 1
    assert (study / "results.jsonl.zst").read_bytes() == before
    assert not list(study.glob(".results*"))
