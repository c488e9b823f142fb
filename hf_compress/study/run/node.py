"""One attempt at a node: claim it, run it, keep its result or its traceback."""

import shutil
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

from hf_compress.redaction import redact_text
from hf_compress.study.grid.plan import Cell, DenseModel
from hf_compress.study.run.results import Measured, Result
from hf_compress.study.run.store import Store

State = Literal["done", "failed", "taken"]


class Work(Protocol):
    """The work of a study, sent to other processes: `cell.Training`, or a substitute in tests."""

    def dense(self, node: DenseModel, store: Store, folder: Path) -> tuple[Path, dict[str, float]]:
        """Train a dense model; return its folder, inside `folder`, and its scores."""

    def cell(self, node: Cell, store: Store, folder: Path) -> Measured:
        """Run a cell and return its report and predictions. The caller removes `folder`."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: "taken" if another engine runs the node. `error` is the last line of the traceback."""

    key: str
    state: State
    seconds: float = 0.0
    error: str = ""


class _Attempt:
    """A context that keeps the error of one node, so that the next node can run."""

    error: BaseException | None = None

    def __enter__(self) -> "_Attempt":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = error
        return isinstance(error, Exception)  # Not Ctrl-C.


def attempt(work: Work, node: DenseModel | Cell, store: Store) -> Outcome:
    """Run a node and return the outcome, unless it is done or another engine runs it."""
    with store.claim(node.key) as ours:
        if not ours:
            return Outcome(node.key, "taken")
        if store.is_done(node):  # Another engine was faster.
            return Outcome(node.key, "done")
        folder = store.scratch(node.key)
        shutil.rmtree(folder, ignore_errors=True)  # Left by an attempt that was killed.
        folder.mkdir()
        start = time.perf_counter()
        with _Attempt() as trial:
            if isinstance(node, DenseModel):
                store.save_dense(node.key, *work.dense(node, store, folder))
            else:
                found = work.cell(node, store, folder)
                shutil.rmtree(
                    folder, ignore_errors=True
                )  # Before the result: a finished node is never looked at again.
                answers = {name: one for name, one in found.answers.items() if one is not None}
                store.save(Result(node, found.report, time.perf_counter() - start, answers))
        shutil.rmtree(folder, ignore_errors=True)
        seconds = time.perf_counter() - start
        if trial.error is None:
            return Outcome(node.key, "done", seconds)
        store.save_error(node.key, redact_text("".join(traceback.format_exception(trial.error))))
        return Outcome(
            node.key, "failed", seconds, redact_text(f"{type(trial.error).__name__}: {trial.error}").splitlines()[0]
        )
