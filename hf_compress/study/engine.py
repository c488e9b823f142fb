"""The engine of a study: what is not done yet is run, in an order in which all that it needs is there."""

import heapq
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from hf_compress.study.node import Outcome, is_done
from hf_compress.study.plan import Cell, Dense, Plan
from hf_compress.study.store import Store
from hf_compress.study.workers import Workers

# Seconds between two looks at a node that another engine is at.
PATIENCE = 2.0


@dataclass
class Progress:
    """What has become of the nodes of a run so far. `blocked` cells wait for a dense model that failed."""

    total: int
    done: dict[str, float] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)
    dense_done: dict[str, float] = field(default_factory=dict)
    found: int = 0

    @property
    def finished(self) -> bool:
        return self.found + len(self.done) == self.total


Listener = Callable[[Progress, Outcome | None], None]


def run(
    plan: Plan,
    store: Store,
    workers: Workers,
    *,
    cells: Collection[str] | None = None,
    known: Collection[str] = (),
    retry_failed: bool = False,
    listener: Listener = lambda progress, outcome: None,
) -> Progress:
    """What has become of the `cells` of `plan` (by default all), once all have been run that were not done.

    Args:
        known: cells that count as done although their results are not in the store.
        retry_failed: whether nodes that failed in an earlier run get another attempt.
        listener: called whenever a node ends, and once a second.
    """
    engine = _Engine(plan, store, workers, list(plan.cells if cells is None else cells), set(known))
    engine.begin(retry_failed)
    try:
        while engine.step():
            for outcome in workers.outcomes(1.0 if engine.progress.running else 0.0) or [None]:
                if outcome is not None:
                    engine.take(outcome)
                listener(engine.progress, outcome)
    finally:
        workers.close()
    return engine.progress


class _Engine:
    def __init__(self, plan: Plan, store: Store, workers: Workers, cells: list[str], known: set[str]) -> None:
        self.plan, self.store, self.workers = plan, store, workers
        self.chosen, self.known = cells, known
        self.progress = Progress(total=len(cells))
        self.place: dict[str, int] = {}
        self.ready: list[tuple[int, str]] = []
        self.waiting: dict[str, set[str]] = {}
        self.dependents: dict[str, list[str]] = {}
        self.elsewhere: list[str] = []

    def begin(self, retry_failed: bool) -> None:
        """Sorts out what there is to do."""
        for number, key in enumerate(self.chosen):
            cell = self.plan.cells[key]
            if key in self.known or is_done(cell, self.store):
                self.progress.found += 1
                continue
            if self._failed_before(key, retry_failed):
                continue
            needs = {need for need in cell.needs if self._needs_running(need, 2 * number, retry_failed)}
            self.place[key] = 2 * number + 1
            for need in cell.needs:
                self.dependents.setdefault(need, []).append(key)
            if any(need in self.progress.failed for need in needs):
                self.progress.blocked.add(key)
            elif needs:
                self.waiting[key] = needs
            else:
                self._push(key)

    def step(self) -> bool:
        """Gives the workers what they can take; whether there is anything to wait for."""
        if not self.progress.running and not self.ready and self.elsewhere:
            import time

            time.sleep(PATIENCE)
        if self.elsewhere and not self.ready:
            for key in self.elsewhere:
                self._push(key)
            self.elsewhere = []
        while self.ready and len(self.progress.running) < self.workers.slots:
            _, key = heapq.heappop(self.ready)
            self.progress.running.add(key)
            self.workers.submit(self._node(key))
        return bool(self.progress.running or self.ready or self.elsewhere)

    def take(self, outcome: Outcome) -> None:
        """Draws the consequences of what has ended."""
        key, progress = outcome.key, self.progress
        progress.running.discard(key)
        if outcome.state == "taken":
            self.elsewhere.append(key)
        elif outcome.state == "failed":
            progress.failed[key] = outcome.error
            blocked = [other for other in self.dependents.get(key, ()) if other in self.waiting]
            for other in blocked:
                del self.waiting[other]
            progress.blocked |= set(blocked)
        elif key in self.plan.dense:
            progress.dense_done[key] = outcome.seconds
            for other in self.dependents.get(key, ()):
                needs = self.waiting.get(other)
                if needs is not None:
                    needs.discard(key)
                    if not needs:
                        del self.waiting[other]
                        self._push(other)
        else:
            progress.done[key] = outcome.seconds
            for need in self.plan.cells[key].needs:
                self._forget_if_idle(need)

    def _node(self, key: str) -> Dense | Cell:
        return self.plan.dense[key] if key in self.plan.dense else self.plan.cells[key]

    def _push(self, key: str) -> None:
        heapq.heappush(self.ready, (self.place[key], key))

    def _failed_before(self, key: str, retry: bool) -> bool:
        error = self.store.error(key)
        if error is None:
            return False
        if retry:
            self.store.forget_error(key)
            return False
        self.progress.failed[key] = error.strip().splitlines()[-1]
        return True

    def _needs_running(self, key: str, place: int, retry: bool) -> bool:
        """Whether a dense model is not there; the first time that it is asked for, it is put in line."""
        if key in self.place or key in self.progress.failed:
            return True
        if is_done(self.plan.dense[key], self.store):
            return False
        if not self._failed_before(key, retry):
            self.place[key] = place
            self._push(key)
        return True

    def _forget_if_idle(self, key: str) -> None:
        """Removes a dense model once no cell of the plan needs it; one that another engine is to run does."""
        for cell in self._cells_of(key):
            if (
                cell not in self.progress.done
                and cell not in self.known
                and not is_done(self.plan.cells[cell], self.store)
            ):
                return
        self.store.forget_dense(key)

    def _cells_of(self, key: str) -> Iterable[str]:
        if not hasattr(self, "_by_need"):
            self._by_need: dict[str, list[str]] = {}
            for cell in self.plan.cells.values():
                for need in cell.needs:
                    self._by_need.setdefault(need, []).append(cell.key)
        return self._by_need[key]
