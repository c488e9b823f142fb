"""Where nodes run: in this process, or in worker processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Protocol

from hf_compress.study.grid.plan import Cell, DenseModel
from hf_compress.study.run.node import Outcome, Work, attempt
from hf_compress.study.run.store import Store

DIED = "The worker process died (exit code {code}). It may have run out of memory."


class Workers(Protocol):
    """The interface of all workers."""

    @property
    def slots(self) -> int:
        """How many nodes can run now."""

    def submit(self, node: DenseModel | Cell) -> None:
        """Start a node. A slot must be free."""

    def outcomes(self, timeout: float) -> list[Outcome]:
        """Return what has ended; wait up to `timeout` seconds for the first."""

    def close(self) -> None:
        """End all processes, also busy ones."""


class SerialWorkers:
    """Runs nodes in this process, one at a time, when `outcomes` is called.

    Example:
        >>> from hf_compress.study.grid import Sources, StudyGrid
        >>> from hf_compress.study.run import SerialWorkers, Store
        >>> from hf_compress.study.run.cell import Training
        >>> grid = StudyGrid.from_dict({"models": [{"name": "tiny", "path": "tiny"}], "tasks": ["sst2"]})
        >>> workers = SerialWorkers(Training(Sources(grid)), Store("study"))
        >>> workers.slots, workers.outcomes(timeout=0.0)
        (1, [])
    """

    slots = 1

    def __init__(self, work: Work, store: Store) -> None:
        self.work, self.store = work, store
        self._waiting: deque[DenseModel | Cell] = deque()

    def submit(self, node: DenseModel | Cell) -> None:
        self._waiting.append(node)

    def outcomes(self, timeout: float) -> list[Outcome]:
        return [attempt(self.work, self._waiting.popleft(), self.store)] if self._waiting else []

    def close(self) -> None:
        """Do nothing: there are no processes."""


class ProcessWorkers:
    """Runs nodes in processes of this machine. Processes live as long as the study, so libraries are imported once.

    A process that dies fails its node only, and is replaced. (`concurrent.futures` breaks the whole pool then.)

    Args:
        work: the work of the study.
        store: where results are kept.
        jobs: number of processes.
        threads: compute threads per process; 0 leaves the choice to torch.
        gpus: names as in CUDA_VISIBLE_DEVICES. Each process sees one of them, in turn.

    Example:
        >>> from hf_compress.study.grid import Sources, StudyGrid
        >>> from hf_compress.study.run import ProcessWorkers, Store
        >>> from hf_compress.study.run.cell import Training
        >>> grid = StudyGrid.from_dict({"models": [{"name": "tiny", "path": "tiny"}], "tasks": ["sst2"]})
        >>> workers = ProcessWorkers(Training(Sources(grid)), Store("study"), jobs=2, threads=1)
        >>> workers.slots
        2
        >>> workers.close()
    """

    def __init__(self, work: Work, store: Store, jobs: int, *, threads: int = 0, gpus: Sequence[str] = ()) -> None:
        self.slots = jobs
        self._work, self._store, self._threads, self._gpus = work, store, threads, gpus
        self._context = multiprocessing.get_context("spawn")
        self._idle: list[int] = list(range(jobs))
        self._workers: dict[int, tuple[BaseProcess, Connection]] = {}
        self._busy: dict[int, str] = {}

    def submit(self, node: DenseModel | Cell) -> None:
        slot = self._idle.pop()
        if slot not in self._workers or not self._workers[slot][0].is_alive():
            self._workers[slot] = self._start(slot)
        self._busy[slot] = node.key
        self._workers[slot][1].send(node)

    def outcomes(self, timeout: float) -> list[Outcome]:
        found = []
        connections = {self._workers[slot][1]: slot for slot in self._busy}
        for ready in wait(list(connections), timeout):
            slot = connections[ready]  # type: ignore[index]
            key = self._busy.pop(slot)
            self._idle.append(slot)
            process, connection = self._workers[slot]
            try:
                found.append(connection.recv())
            except (EOFError, ConnectionResetError):
                process.join()
                del self._workers[slot]
                error = DIED.format(code=process.exitcode)
                self._store.save_error(key, error + "\n")
                found.append(Outcome(key, "failed", 0.0, error))
        return found

    def close(self) -> None:
        for process, connection in self._workers.values():
            connection.close()
            process.terminate()
        for process, _ in self._workers.values():
            process.join()
        self._workers.clear()

    def _start(self, slot: int) -> tuple[BaseProcess, Connection]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._work, self._store, self._threads), daemon=True
        )
        # The child reads these when it imports its libraries, so they must be set before it starts.
        settings = {"CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)]} if len(self._gpus) > 1 else {}
        if self._threads:
            settings["OMP_NUM_THREADS"] = str(self._threads)
        with _environment(settings):
            process.start()
        theirs.close()
        return process, ours


def _serve(connection: Connection, work: Work, store: Store, threads: int) -> None:
    """Run a worker process: receive a node, send its outcome, until the engine is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The engine handles Ctrl-C and ends its workers.
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)  # If the engine is killed, its workers must not run on beside those of the next engine.

    threading.Thread(target=watch, daemon=True).start()
    quiet()
    if threads:
        import torch

        torch.set_num_threads(threads)
    while True:
        try:
            node = connection.recv()
        except EOFError:
            return
        connection.send(attempt(work, node, store))


def quiet() -> None:
    """Silence progress bars and messages of libraries. A study has hundreds of runs."""
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    names = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return [name.strip() for name in names.split(",")] if names else [str(n) for n in range(torch.cuda.device_count())]


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    kept = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
