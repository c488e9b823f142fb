"""A study without training: a small grid, and work that records what it was asked to do."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_compress.study.grid.grid import StudyGrid
from hf_compress.study.grid.plan import Cell, DenseModel, Identities, Plan, make_plan
from hf_compress.study.run.results import Measured
from hf_compress.study.run.store import Store

REPORT = json.loads((Path(__file__).parents[1] / "golden" / "report.json").read_text("utf-8"))
VALUES: dict[str, Any] = {
    "models": [{"name": "small", "path": "owner/small", "layers": [1, 2]}, {"name": "large", "path": "owner/large"}],
    "tasks": ["sst2", "mrpc"],
    "teacher": "large",
    "training": {"num_train_epochs": 2},
}


def grid(**changes: Any) -> StudyGrid:
    """Return the grid of `VALUES` with changes."""
    return StudyGrid.from_dict(VALUES | changes)


def planned(**changes: Any) -> Plan:
    """Return the plan of such a grid, with names in place of digests."""
    return make_plan(made := grid(**changes), identities(made))


def identities(of: StudyGrid) -> Identities:
    return Identities({model.path: model.path for model in of.models}, {task.name: task.name for task in of.tasks})


@dataclass(frozen=True)
class Stub:
    """Work that takes `seconds` per node, fails for keys in `failing`, and kills its process for keys in `deadly`."""

    diary: Path
    seconds: float = 0.0
    failing: frozenset[str] = frozenset()
    deadly: frozenset[str] = frozenset()

    def dense(self, node: DenseModel, store: Store, folder: Path) -> tuple[Path, dict[str, float]]:
        self._live(node)
        (folder / "model").mkdir()
        (folder / "model" / "weights").write_text(f"{node.task} {node.model} {node.layers} {node.seed}")
        return folder / "model", {"accuracy": 0.9, "f1": 0.9, "loss": 0.3}

    def cell(self, node: Cell, store: Store, folder: Path) -> Measured:
        read = {need: (store.model(need) / "weights").read_text() for need in node.needs}
        self._live(node)
        return Measured(REPORT | {"task": node.task, "seed": node.seed, "base_model": json.dumps(read)}, {})

    def begun(self) -> list[str]:
        """Return the keys of the nodes that were started, in order."""
        return self.diary.read_text().split() if self.diary.exists() else []

    def _live(self, node: DenseModel | Cell) -> None:
        with self.diary.open("a") as diary:
            diary.write(f"{node.key}\n")
        time.sleep(self.seconds)
        if node.key in self.deadly:
            os._exit(3)
        if node.key in self.failing:
            raise RuntimeError(f"no luck with {node.key}")
