"""Measure the overhead of a study: the engine's time in a run of cells that only sleep, and the time of planning.

Each cell sleeps for a known time. The rest of the run's time is the engine's: claims, order, files. Planning is
measured on 10,000 cells, with names in place of models and data.

    python benchmarks/study.py --json study.json
"""

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_compress.study.grid import Cell, DenseModel, Identities, Plan, StudyGrid, make_plan
from hf_compress.study.run import SerialWorkers, Store, run_plan

CARDS = Path(__file__).parents[1] / "model_cards"


@dataclass(frozen=True)
class Waiting:
    """Work that sleeps, and returns a real report."""

    seconds: float
    report: dict[str, Any]

    def dense(self, node: DenseModel, store: Store, folder: Path) -> tuple[Path, dict[str, float]]:
        (folder / "model").mkdir()
        time.sleep(self.seconds)
        return folder / "model", {"accuracy": 0.9}

    def cell(self, node: Cell, store: Store, folder: Path) -> dict[str, Any]:
        time.sleep(self.seconds)
        return self.report


def planned(seeds: int, sparsities: list[float], tasks: list[str]) -> Plan:
    grid = StudyGrid.from_dict(
        {
            "models": [{"name": "small", "path": "small", "layers": [1, 2]}, {"name": "large", "path": "large"}],
            "tasks": tasks,
            "teacher": "large",
            "sparsities": sparsities,
            "seeds": list(range(seeds)),
        }
    )
    names = [model.path for model in grid.models]
    return make_plan(grid, Identities(dict(zip(names, names, strict=True)), dict(zip(tasks, tasks, strict=True))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=0.5, help="seconds per cell; a real one takes minutes")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    options = parser.parse_args()

    start = time.perf_counter()
    many = planned(47, [0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.97, 0.99], ["sst2", "mrpc"])
    planning = time.perf_counter() - start
    print(f"planned {len(many.cells):,} cells on {len(many.dense)} dense models in {planning:.2f} s")

    report = json.loads(next(CARDS.glob("*/report.json")).read_text("utf-8"))
    whole = planned(-(-options.cells // 24), [0.6], ["sst2"])
    chosen = list(whole.cells)[: options.cells]
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        start = time.perf_counter()
        progress = run_plan(whole, store, SerialWorkers(Waiting(options.seconds, report), store), cells=chosen)
        took = time.perf_counter() - start
    waited = options.seconds * len(progress.done)
    overhead = took / waited - 1
    print(
        f"{len(chosen)} cells and {len(progress.done) - len(chosen)} dense models of {options.seconds:g} s: "
        f"{took:.2f} s, {100 * overhead:.2f} % overhead"
    )
    if options.json:
        numbers = {
            "cells": len(chosen),
            "overhead": overhead,
            "planned": len(many.cells),
            "planning_seconds": planning,
        }
        options.json.write_text(json.dumps(numbers, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
