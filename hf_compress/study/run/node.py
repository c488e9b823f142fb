"""One attempt at a node: claimed, run, and its result or its traceback kept."""

import shutil
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from hf_compress.study.grid.plan import Cell, Dense
from hf_compress.study.run.results import Result
from hf_compress.study.run.store import Store

State = Literal["done", "failed", "taken"]


class Work(Protocol):
    """What a study does, to be sent to other processes: `cell.Training`, or a stand-in for it."""

    def dense(self, node: Dense, store: Store, folder: Path) -> tuple[Path, dict[str, float]]:
        """The folder of a dense model, inside `folder`, and its scores."""

    def cell(self, node: Cell, store: Store, folder: Path) -> dict[str, Any]:
        """The report on a cell; what is left in `folder` is removed."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: `taken` if another engine is at the node. `error` is the last line of a traceback."""

    key: str
    state: State
    seconds: float = 0.0
    error: str = ""


class _Attempt:
    """A context that keeps the error with which it ends, whatever it is, and lets the next node have its turn."""

    error: BaseException | None = None

    def __enter__(self) -> "_Attempt":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        return isinstance(error, Exception)  # Not the user's Ctrl-C.


def attempt(work: Work, node: Dense | Cell, store: Store) -> Outcome:
    """The outcome of running `node`, unless it is finished or somebody else is at it."""
    with store.claim(node.key) as ours:
        if not ours:
            return Outcome(node.key, "taken")
        if store.is_done(node):  # By another engine, since this one looked.
            return Outcome(node.key, "done")
        folder = store.scratch(node.key)
        shutil.rmtree(folder, ignore_errors=True)  # Of an attempt that was killed.
        folder.mkdir()
        start = time.perf_counter()
        with _Attempt() as trial:
            if isinstance(node, Dense):
                store.save_dense(node.key, *work.dense(node, store, folder))
            else:
                report = work.cell(node, store, folder)
                store.save(Result(node, report, time.perf_counter() - start))
        shutil.rmtree(folder, ignore_errors=True)
        seconds = time.perf_counter() - start
        if trial.error is None:
            return Outcome(node.key, "done", seconds)
        store.save_error(node.key, "".join(traceback.format_exception(trial.error)))
        return Outcome(node.key, "failed", seconds, f"{type(trial.error).__name__}: {trial.error}".splitlines()[0])
