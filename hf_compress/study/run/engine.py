"""The engine of a study: runs what is not done yet, each node after the nodes it needs."""

import heapq
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from hf_compress.report.report import REPORT_NAME
from hf_compress.study.grid.plan import Cell, DenseModel, Plan
from hf_compress.study.run.node import Outcome
from hf_compress.study.run.store import DENSE_FILE, ERROR_FILE, Store
from hf_compress.study.run.workers import Workers

# Seconds between two looks at nodes that another engine runs.
PATIENCE = 2.0


@dataclass
class Progress:
    """The state of a run.

    Args:
        chosen: the cells to run.
        found: cells that were done before.
        done: nodes done in this run, with their seconds.
        failed: nodes that failed, with the last line of the traceback.
        blocked: cells whose dense model failed.
        running: nodes that run now.
        to_do: nodes that are still to be run or running.
    """

    chosen: tuple[str, ...]
    found: set[str] = field(default_factory=set)
    done: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    to_do: set[str] = field(default_factory=set)

    @property
    def finished(self) -> bool:
        """Whether all chosen cells are done."""
        return all(key in self.found or key in self.done for key in self.chosen)


Listener = Callable[[Progress, Outcome | None], None]


def run_plan(
    plan: Plan,
    store: Store,
    workers: Workers,
    *,
    cells: Collection[str] | None = None,
    known: Collection[str] = (),
    retry_failed: bool = False,
    listener: Listener = lambda progress, outcome: None,
) -> Progress:
    """Run the cells of a plan that are not done, and return the state at the end.

    A dense model is trained if a cell needs it, and removed when no cell of the plan needs it any more.

    Args:
        plan: the nodes.
        store: where results are kept.
        workers: where nodes run; closed at the end.
        cells: keys of the cells to run; by default all.
        known: keys of cells that count as done although the store has no result.
        retry_failed: whether to run nodes again that failed in an earlier run.
        listener: called before the first node, when a node ends, and once a second.

    Example:
        >>> from hf_compress.study.grid import Identities, Sources, StudyGrid, make_plan
        >>> from hf_compress.study.run import SerialWorkers, Store, run_plan
        >>> from hf_compress.study.run.cell import Training
        >>> grid = StudyGrid.from_dict({"models": [{"name": "tiny", "path": "tiny"}], "tasks": ["sst2"]})
        >>> plan = make_plan(grid, Identities(models={"tiny": "digest"}, data={"sst2": "digest"}))
        >>> store = Store("study")
        >>> workers = SerialWorkers(Training(Sources(grid)), store)
        >>> progress = run_plan(plan, store, workers, known=plan.cells)  # all cells are done elsewhere
        >>> progress.finished, len(progress.found), len(progress.done)
        (True, 8, 0)
    """
    engine = _Engine(plan, store, workers, tuple(plan.cells if cells is None else cells), set(known))
    engine.begin(retry_failed)
    listener(engine.progress, None)
    try:
        while engine.step():
            ended = workers.outcomes(1.0)
            for outcome in ended:
                engine.take(outcome)
                listener(engine.progress, outcome)
            if not ended:
                listener(engine.progress, None)
    finally:
        workers.close()
    return engine.progress


class _Engine:
    def __init__(self, plan: Plan, store: Store, workers: Workers, chosen: tuple[str, ...], known: set[str]) -> None:
        self.plan, self.store, self.workers, self.known = plan, store, workers, known
        self.progress, self.ours = Progress(chosen), frozenset(chosen)
        self.order: dict[str, int] = {}
        self.ready: list[tuple[int, str]] = []
        self.waiting: dict[str, set[str]] = {}
        self.elsewhere: list[str] = []
        # All cells of the plan that are not done, by the dense model they need. Includes cells of other engines.
        self.open: dict[str, set[str]] = {key: set() for key in plan.dense}

    def begin(self, retry_failed: bool) -> None:
        """Find out what to do, with one look at the store."""
        reports, listed = self.store.listed(REPORT_NAME), self.store.listed(DENSE_FILE)
        present = {key for key in listed & self.plan.dense.keys() if self.store.dense(key) is not None}
        failed = self.store.listed(ERROR_FILE)
        if retry_failed:
            for key in failed & (self.plan.cells.keys() | self.plan.dense.keys()):
                self.store.forget_error(key)
            failed = set()
        done = {
            key
            for key, cell in self.plan.cells.items()
            if key in self.known or (key in reports and self.store.is_done(cell))
        }
        for key, cell in self.plan.cells.items():
            for need in cell.needs if key not in done else ():
                self.open[need].add(key)
        for number, key in enumerate(self.progress.chosen):
            if key in done:
                self.progress.found.add(key)
            elif key in failed:
                self._remember_failure(key)
            else:
                self._plan_cell(key, number, present, failed)
        for key in present & self.open.keys():
            self._forget_if_idle(key)

    def step(self) -> bool:
        """Submit nodes to free workers. Return whether there is anything to wait for."""
        if self.elsewhere and not self.ready:
            if not self.progress.running:
                time.sleep(PATIENCE)
            for key in self.elsewhere:
                self._push(key)
            self.elsewhere = []
        while self.ready and len(self.progress.running) < self.workers.slots:
            _, key = heapq.heappop(self.ready)
            self.progress.running.add(key)
            self.workers.submit(self._node(key))
        return bool(self.progress.running or self.ready or self.elsewhere)

    def take(self, outcome: Outcome) -> None:
        """Record how a node ended, and release or block the nodes that need it."""
        key, progress = outcome.key, self.progress
        progress.running.discard(key)
        if outcome.state == "taken":
            self.elsewhere.append(key)
            return
        progress.to_do.discard(key)
        if outcome.state == "failed":
            progress.failed[key] = outcome.error
            for other in self.open.get(key, set()) & self.waiting.keys():
                self._block(other)
            return
        progress.done[key] = outcome.seconds
        if key in self.plan.dense:
            for other in self.open[key] & self.waiting.keys():
                self.waiting[other].discard(key)
                if not self.waiting[other]:
                    del self.waiting[other]
                    self._push(other)
        else:
            for need in self.plan.cells[key].needs:
                self.open[need].discard(key)
                self._forget_if_idle(need)

    def _plan_cell(self, key: str, number: int, present: set[str], failed: set[str]) -> None:
        missing = [need for need in self.plan.cells[key].needs if need not in present]
        self.order[key] = 2 * number + 1
        self.progress.to_do.add(key)
        self.waiting[key] = set(missing)
        for need in missing:
            if need in failed:
                self._remember_failure(need)
            elif need not in self.order:
                self.order[need] = 2 * number  # Just before the first cell that needs it.
                self.progress.to_do.add(need)
                self._push(need)
        if any(need in self.progress.failed for need in missing):
            self._block(key)
        elif not missing:
            del self.waiting[key]
            self._push(key)

    def _block(self, key: str) -> None:
        self.waiting.pop(key)
        self.progress.to_do.discard(key)
        self.progress.blocked.add(key)

    def _remember_failure(self, key: str) -> None:
        lines = (self.store.error(key) or "").strip().splitlines()
        self.progress.failed[key] = lines[-1] if lines else "It failed without a message."

    def _node(self, key: str) -> DenseModel | Cell:
        return self.plan.dense[key] if key in self.plan.dense else self.plan.cells[key]

    def _push(self, key: str) -> None:
        heapq.heappush(self.ready, (self.order[key], key))

    def _forget_if_idle(self, key: str) -> None:
        """Remove a dense model that no cell needs. Cells of other engines are looked up in the store."""
        if self.open[key] & self.ours:
            return
        self.open[key] = {other for other in self.open[key] if not self.store.is_done(self.plan.cells[other])}
        if not self.open[key]:
            self.store.forget_dense(key)
