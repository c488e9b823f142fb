"""The displayed progress adds up, and the remaining time follows the most similar nodes."""

import io
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from hf_compress.study.run.display import STATES, Display, label, states
from hf_compress.study.run.engine import Progress, run_plan
from hf_compress.study.run.estimate import in_words, seconds_left
from hf_compress.study.run.store import Store
from hf_compress.study.run.workers import SerialWorkers
from tests.study.stub import Stub, planned


@pytest.mark.parametrize("terminal", [True, False])
def test_a_run_is_shown_as_it_goes_and_its_cells_add_up(terminal: bool, tmp_path: Path) -> None:
    whole, store, shown = planned(), Store(tmp_path / "out"), io.StringIO()
    unlucky = list(whole.cells)[3]
    console = Console(file=shown, force_terminal=terminal, width=160)
    work = Stub(tmp_path / "diary", failing=frozenset({unlucky}))
    with Display(whole, console, {}, lambda: 1) as display:
        progress = run_plan(whole, store, SerialWorkers(work, store), listener=display)
    counted = states(whole, progress)
    assert sum(sum(counts.values()) for counts in counted.values()) == len(whole.cells)
    assert {state for counts in counted.values() for state in counts} == {"done", "failed"}
    if terminal:
        assert all(heading in shown.getvalue() for heading in STATES) and "time left" in shown.getvalue()
    else:
        lines = shown.getvalue().splitlines()
        assert len(lines) == len(whole.cells) + len(whole.dense)
        (failed,) = (line for line in lines if " failed " in line)
        assert label(whole.cells[unlucky]) in failed and "no luck" in failed


def test_a_cell_counts_once_whatever_has_become_of_it() -> None:
    whole = planned(tasks=["sst2"])
    first, second, third, fourth, *_ = whole.cells
    progress = Progress(tuple(whole.cells), {first}, {second: 1.0}, {third: "error"}, {fourth})
    total = sum(states(whole, progress).values(), Counter())
    assert total == {"done": 2, "failed": 1, "blocked": 1, "to do": len(whole.cells) - 4}


def test_nodes_are_called_by_what_the_grid_calls_them() -> None:
    whole = planned()
    names = [label(node) for node in (*whole.cells.values(), *whole.dense.values())]
    assert "sst2 small/1 kd+mp+int8 60 % seed 0" in names and "mrpc large baseline seed 0" in names
    assert len(set(names)) == len(names)


def test_the_remaining_time_follows_the_most_similar_nodes() -> None:
    whole = planned()
    cells = {(cell.task, cell.layers, cell.methods): key for key, cell in whole.cells.items()}
    known = cells["sst2", 1, "mp"]
    same_size, same_task, other = cells["sst2", 1, "kd"], cells["sst2", 2, "kd"], cells["mrpc", 2, "kd"]
    assert seconds_left(whole, [same_size], {}) is None
    assert seconds_left(whole, [same_size, same_task, other], {known: 10.0}) == 30.0
    took = {known: 10.0, cells["sst2", 2, "mp"]: 20.0, cells["mrpc", 1, "mp"]: 60.0}
    assert seconds_left(whole, [same_size], took) == 10.0
    assert seconds_left(whole, [cells["sst2", None, "mp"]], took) == 15.0
    assert seconds_left(whole, [], took) == 0.0


@pytest.mark.parametrize(("seconds", "words"), [(None, "unknown"), (5.4, "5 s"), (600.0, "10 min"), (9000.0, "2.5 h")])
def test_durations_are_said_in_words(seconds: float | None, words: str) -> None:
    assert in_words(seconds) == words
