"""Nodes of a study on a cluster, through Ray: it finds them a machine, and another if that is lost."""

import logging
import socket
from typing import TYPE_CHECKING, Any

from hf_compress.extras import extra
from hf_compress.study.grid.plan import Cell, Dense
from hf_compress.study.run.node import Outcome, Work, attempt
from hf_compress.study.run.store import Store

if TYPE_CHECKING:
    import ray

LOCAL = "local"


class OnRay:
    """The cluster at `address`: `auto` is the one that this machine is part of, `local` one that lives as long as we.

    A node takes `cpus` and `gpus` of a machine and has as many compute threads; where its process or its machine dies
    it is run again, up to `retries` times. What a node raises itself is its failure. The folder of the study must be
    one that all machines see, or a URL.

    Raises:
        MissingExtraError: Ray is not installed.
        ValueError: there is no cluster at `address`, or it is too small.
    """

    def __init__(
        self, work: Work, store: Store, address: str, *, cpus: float = 1.0, gpus: float = 0.0, retries: int = 3
    ) -> None:
        with extra("ray", "`--ray`"):
            import ray
        self._ray, self._cpus, self._gpus = ray, cpus, gpus
        self._ours = not ray.is_initialized()
        if self._ours:
            try:
                _reach(address)
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            except OSError as error:  # ConnectionError is one.
                raise ValueError(
                    f"`--ray {address}`: there is no cluster ({error}). Start one, or give local."
                ) from error
        if self.slots < 1:
            raise ValueError(
                f"`--cpus {cpus:g}` and `--gpus {gpus:g}` are more than the cluster at {address} has in all. "
                "Ask for less."
            )
        self._remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries)(_attempt)
        self._shared = ray.put((work, store, max(1, int(cpus))))
        self._store = store
        self._running: dict["ray.ObjectRef[Outcome]", str] = {}

    @property
    def slots(self) -> int:
        """How many nodes the cluster has room for, as large as it is now."""
        present = self._ray.cluster_resources()
        room = [
            int(present.get(kind, 0) / share) for kind, share in (("CPU", self._cpus), ("GPU", self._gpus)) if share
        ]
        return min(room, default=1)

    def submit(self, node: Dense | Cell) -> None:
        self._running[self._remote.remote(self._shared, node)] = node.key

    def outcomes(self, timeout: float) -> list[Outcome]:
        if not self._running:
            return []
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
        return [self._outcome(reference) for reference in ready]

    def close(self) -> None:
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._running.clear()
        if self._ours:
            self._ray.shutdown()

    def _outcome(self, reference: "ray.ObjectRef[Outcome]") -> Outcome:
        key = self._running.pop(reference)
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayError as error:  # Its retries are used up.
            self._store.save_error(key, f"{error}\n")
            return Outcome(key, "failed", 0.0, f"{type(error).__name__}: {error}".splitlines()[0])


def _reach(address: str) -> None:
    """Does nothing if something listens at `HOST:PORT`; Ray itself would wait there for minutes, out of reach."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=10).close()


def _attempt(shared: Any, node: Dense | Cell) -> Outcome:
    """What Ray runs: an attempt at a node, on as many threads as it has CPUs."""
    import torch

    work, store, threads = shared
    torch.set_num_threads(threads)
    return attempt(work, node, store)
