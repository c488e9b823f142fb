"""Runs `hf-compress` in processes against a local Hub: real sockets and real clients, without the waiting.

The processes are forked from one that has imported everything. In them `time.sleep` takes a hundredth of the time, and
what they would have slept is added to the seconds of the run; so waiting between attempts costs no time in tests.
"""

import importlib
import io
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hub.local import LocalHub

FASTER = 100
# What multiprocessing says of a process whose server has ended before it. The process goes on.
LOST = 255
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(["hf_compress", "hf_compress.hub", "hf_compress_cli", "tests.hub.pushing"])


@dataclass(frozen=True)
class Ran:
    """The end of a process: exit status (negative: the signal that killed it), what it printed, seconds it took."""

    status: int | None
    said: str
    seconds: float


def run(
    hub: LocalHub,
    arguments: Sequence[str | Path],
    *,
    token: str | None,
    xet: bool = False,
    interrupt_at: str | None = None,
    limit: float = 120.0,
    environment: Mapping[str, str] | None = None,
) -> Ran:
    """Run `hf-compress ARGUMENTS` and return its end.

    Args:
        hub: where HF_ENDPOINT points.
        arguments: of the command line.
        token: HF_TOKEN; None for nobody.
        xet: whether large files go through Xet.
        interrupt_at: press Ctrl-C when a request comes in whose "METHOD /path" holds this.
        limit: seconds after which the process is killed.
        environment: more variables of its environment.
    """
    slept, ended = _PROCESSES.Value("d", 0.0), _PROCESSES.Value("i", -1)
    with tempfile.NamedTemporaryFile("r", encoding="utf-8", errors="replace") as said:
        words = [str(argument) for argument in arguments]
        variables = hub.environment(token, xet=xet) | dict(environment or {})
        process = _PROCESSES.Process(target=_in_process, args=(words, variables, said.name, slept, ended))
        started = time.monotonic()
        process.start()
        if interrupt_at is not None:
            wait(lambda: any(interrupt_at in request.line for request in hub.requests), limit)
            os.kill(process.pid or 0, signal.SIGINT)
        process.join(limit)
        if process.exitcode == LOST:
            wait(lambda: ended.value >= 0, limit)
            return Ran(ended.value, said.read(), time.monotonic() - started + slept.value)
        if process.is_alive():
            process.kill()
            process.join()
        return Ran(process.exitcode, said.read(), time.monotonic() - started + slept.value)


def wait(happened: Callable[[], bool], limit: float) -> None:
    """Wait until something has happened, for `limit` seconds at most."""
    deadline = time.monotonic() + limit
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.01)


def _in_process(words: list[str], environment: dict[str, str], said: str, slept: Any, ended: Any) -> None:
    """Become the program: its environment, its output, its exit status."""
    os.environ.clear()
    os.environ.update(environment)
    import datasets.config
    import huggingface_hub.constants

    # The libraries read their environment when they were imported.
    importlib.reload(huggingface_hub.constants)
    importlib.reload(datasets.config)
    sleep, main = time.sleep, threading.get_ident()
    by_thread: dict[int, float] = defaultdict(float)

    def doze(seconds: float) -> None:
        by_thread[threading.get_ident()] += seconds
        others = [total for thread, total in list(by_thread.items()) if thread != main]
        slept.value = by_thread[main] + max(others, default=0.0)  # Uploads wait at the same time.
        sleep(seconds / FASTER)

    time.sleep = doze
    output = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(number, "w", closefd=False)) for number in (1, 2))
    from hf_compress_cli import app

    try:
        app(words, prog_name="hf-compress")
    except SystemExit as end:
        ended.value = int(end.code or 0)
        raise
