"""The engine runs each cell once, despite failures, kills and damaged folders."""

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from hf_compress.report.report import REPORT_NAME, Report
from hf_compress.study.grid.plan import Plan
from hf_compress.study.run import engine
from hf_compress.study.run.engine import Progress, run_plan
from hf_compress.study.run.results import read_results, write_results
from hf_compress.study.run.store import Store
from hf_compress.study.run.workers import ProcessWorkers, SerialWorkers
from tests.study.stub import Stub, planned

FORK = multiprocessing.get_context("fork")


def go(plan: Plan, work: Stub, folder: Path | str, **options: Any) -> Progress:
    store = Store(folder)
    return run_plan(plan, store, SerialWorkers(work, store), **options)


def reports(folder: Path) -> dict[str, str]:
    return {file.parent.name: file.read_text() for file in folder.glob(f"*/{REPORT_NAME}")}


@pytest.fixture
def work(tmp_path: Path) -> Stub:
    return Stub(tmp_path / "diary")


def test_every_cell_is_run_once_after_what_it_needs(work: Stub, tmp_path: Path) -> None:
    whole = planned()
    assert go(whole, work, tmp_path / "out").finished
    begun = work.begun()
    assert sorted(begun) == sorted([*whole.cells, *whole.dense])
    place = {key: number for number, key in enumerate(begun)}
    assert all(place[need] < place[key] for key, cell in whole.cells.items() for need in cell.needs)


def test_only_new_cells_run(work: Stub, tmp_path: Path) -> None:
    go(planned(methods=["dense", "mp"]), work, tmp_path / "out")
    before = len(work.begun())
    assert go(planned(methods=["dense", "mp"]), work, tmp_path / "out").finished
    assert len(work.begun()) == before
    whole = planned(methods=["dense", "mp", "int8"])
    assert go(whole, work, tmp_path / "out").finished
    again = work.begun()[before:]
    assert sum(key in whole.cells for key in again) == 6
    assert all(whole.cells[key].methods == "int8" for key in again if key in whole.cells)


def test_a_broken_result_runs_again(work: Stub, tmp_path: Path) -> None:
    whole = planned(methods=["dense"])
    go(whole, work, tmp_path / "out")
    undisturbed = reports(tmp_path / "out")
    first, second, *_ = whole.cells
    (tmp_path / "out" / first / REPORT_NAME).write_text('{"schema": "hf_comp')
    (tmp_path / "out" / second / "cell.json").unlink()
    assert go(whole, work, tmp_path / "out").finished
    assert work.begun().count(first) == 2 and work.begun().count(second) == 2
    assert reports(tmp_path / "out") == undisturbed


def test_dense_models_live_as_long_as_a_cell_needs_them(work: Stub, tmp_path: Path) -> None:
    whole, store = planned(), Store(tmp_path / "out")
    mrpc = [key for key, cell in whole.cells.items() if cell.task == "mrpc"]
    half = [key for key in mrpc if whole.cells[key].methods != "kd"]
    go(whole, work, tmp_path / "out", cells=half)
    kept = {key for key in whole.dense if store.model(key).exists()}
    assert kept == {need for key in mrpc for need in whole.cells[key].needs}
    go(whole, work, tmp_path / "out")
    assert not any(store.model(key).exists() or store.dense(key) for key in whole.dense)
    assert work.begun().count(next(iter(kept))) == 1


def test_a_failed_cell_keeps_its_traceback_and_can_rerun(work: Stub, tmp_path: Path) -> None:
    whole = planned()
    unlucky = list(whole.cells)[5]
    broken = Stub(work.diary, failing=frozenset({unlucky}))
    progress = go(whole, broken, tmp_path / "out")
    assert not progress.finished
    assert progress.failed == {unlucky: f"RuntimeError: no luck with {unlucky}"}
    assert len(progress.done.keys() & whole.cells.keys()) == len(whole.cells) - 1
    traceback = (tmp_path / "out" / unlucky / "error.txt").read_text()
    assert "Traceback" in traceback and "in _live" in traceback
    begun = len(work.begun())
    assert go(whole, work, tmp_path / "out").failed == progress.failed
    assert len(work.begun()) == begun
    assert go(whole, work, tmp_path / "out", retry_failed=True).finished
    assert not (tmp_path / "out" / unlucky / "error.txt").exists()


def test_a_failed_dense_model_blocks_only_its_own_cells(work: Stub, tmp_path: Path) -> None:
    whole = planned(teacher="self")
    unlucky = next(iter(whole.dense))
    waiting = {key for key, cell in whole.cells.items() if unlucky in cell.needs}
    for _ in range(2):  # Once when it fails, once when it has failed before.
        progress = go(whole, Stub(work.diary, failing=frozenset({unlucky})), tmp_path / "out")
        assert progress.blocked == waiting and list(progress.failed) == [unlucky]
        assert len(reports(tmp_path / "out")) == len(whole.cells) - len(waiting)
    assert go(whole, work, tmp_path / "out", retry_failed=True).finished


def test_results_of_another_session_count_as_done(work: Stub, tmp_path: Path) -> None:
    whole = planned()
    some = list(whole.cells)[:20]
    go(whole, work, tmp_path / "first", cells=some)
    for name in ("results.jsonl", "results.jsonl.zst"):
        assert write_results(Store(tmp_path / "first").results(), tmp_path / name) == 20
        found = read_results(tmp_path / name)
        assert {result.cell.key for result in found} == set(some)
        assert all(Report.from_dict(result.report) for result in found)
        assert [result.cell for result in found] == [whole.cells[result.cell.key] for result in found]
    line = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])
    assert set(line) == {"cell", "report", "seconds"}
    known = {result.cell.key for result in found}
    assert go(whole, work, tmp_path / "second", known=known).finished
    assert not reports(tmp_path / "second").keys() & known
    assert len(reports(tmp_path / "second")) == len(whole.cells) - 20


def test_a_file_without_results_is_refused(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", b"{}"), ("b.jsonl.zst", b"{}"), ("c.jsonl", b"words")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match="is not a file of results"):
            read_results(tmp_path / name)
    with pytest.raises(ValueError, match="There is no file"):
        read_results(tmp_path / "none.jsonl")


def test_two_engines_in_one_folder_run_no_node_twice(
    work: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PATIENCE", 0.01)
    whole, slow = planned(), Stub(work.diary, seconds=0.01)
    pair = [FORK.Process(target=go, args=(whole, slow, tmp_path / "out")) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
        assert process.exitcode == 0
    assert len(reports(tmp_path / "out")) == len(whole.cells)
    begun = [key for key in work.begun() if key in whole.cells]
    assert len(begun) == len(set(begun))


def test_a_run_killed_five_times_ends_with_the_same_reports(work: Stub, tmp_path: Path) -> None:
    whole, draw = planned(), random.Random(0)
    assert go(whole, Stub(tmp_path / "other"), tmp_path / "undisturbed").finished
    slow, folder = Stub(work.diary, seconds=0.01), tmp_path / "out"
    finished: dict[str, int] = {}
    for _ in range(5):
        process = FORK.Process(target=go, args=(whole, slow, folder))
        process.start()
        time.sleep(draw.uniform(0.05, 0.2))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        finished |= {key: work.begun().count(key) for key in reports(folder)}
    assert 0 < len(finished) < len(whole.cells), "killed before the end"
    assert go(whole, slow, folder).finished
    assert reports(folder) == reports(tmp_path / "undisturbed")
    assert {key: work.begun().count(key) for key in finished} == finished, "a finished cell was run again"
    assert not list(folder.glob("*/work")) and not list(folder.glob("*/.*.partial"))


def test_results_can_go_to_a_url(work: Stub, tmp_path: Path) -> None:
    whole, address = planned(), f"memory://study-{os.getpid()}"
    unlucky = next(iter(whole.cells))
    assert not go(whole, Stub(work.diary, failing=frozenset({unlucky})), address).finished
    store = Store(address)
    assert store.listed("error.txt") == {unlucky}
    assert {need for key in [unlucky] for need in whole.cells[key].needs} <= store.listed("dense.json")
    assert go(whole, work, address, retry_failed=True).finished
    assert {result.cell.key for result in store.results()} == set(whole.cells)
    assert not store.listed("dense.json") and not store.listed("error.txt")


def test_a_machine_fetches_dense_models_of_another(
    work: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, address = planned(methods=["dense", "kd"], tasks=["sst2"]), f"memory://fetched-{os.getpid()}"
    go(whole, work, address, cells=[key for key in whole.cells if whole.cells[key].methods == "dense"])
    trained = [key for key in work.begun() if key in whole.dense]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))  # Acts as another machine, which has nothing yet.
    assert go(whole, work, address).finished
    assert [key for key in work.begun() if key in whole.dense] == trained


@pytest.mark.slow
def test_a_dying_worker_process_fails_only_its_node(work: Stub, tmp_path: Path) -> None:
    whole, store = planned(), Store(tmp_path / "out")
    unlucky = list(whole.cells)[7]
    deadly = Stub(work.diary, deadly=frozenset({unlucky}))
    progress = run_plan(whole, store, ProcessWorkers(deadly, store, 2, threads=1))
    assert list(progress.failed) == [unlucky] and "exit code 3" in progress.failed[unlucky]
    assert run_plan(whole, store, ProcessWorkers(work, store, 2, threads=1), retry_failed=True).finished
    go(whole, Stub(tmp_path / "other"), tmp_path / "undisturbed")
    assert reports(tmp_path / "out") == reports(tmp_path / "undisturbed")


def _with_workers(plan: Plan, work: Stub, folder: Path) -> None:
    store = Store(folder)
    run_plan(plan, store, ProcessWorkers(work, store, 2, threads=1))


@pytest.mark.slow
def test_killing_the_engine_ends_its_workers(work: Stub, tmp_path: Path) -> None:
    whole, slow, folder = planned(), Stub(work.diary, seconds=0.3), tmp_path / "out"
    process = FORK.Process(target=_with_workers, args=(whole, slow, folder))
    process.start()
    while len(work.begun()) < 8:
        assert process.is_alive()
        time.sleep(0.05)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    time.sleep(1)
    begun, finished = work.begun(), reports(folder)
    time.sleep(1)
    assert work.begun() == begun, "a worker goes on without its engine"
    assert finished and go(whole, work, folder).finished
    assert all(work.begun().count(key) == begun.count(key) for key in finished)
    go(whole, Stub(tmp_path / "other"), tmp_path / "undisturbed")
    assert reports(folder) == reports(tmp_path / "undisturbed")
