"""Workers on a Ray cluster. Ray finds a machine for each node, and another one if a machine is lost."""

import logging
import socket
from typing import TYPE_CHECKING, Any

from hf_compress.extras import extra
from hf_compress.study.grid.plan import Cell, DenseModel
from hf_compress.study.run.node import Outcome, Work, attempt
from hf_compress.study.run.store import Store

if TYPE_CHECKING:
    import ray

LOCAL = "local"


class RayWorkers:
    """Runs nodes on the Ray cluster at an address.

    A node that raises an error has failed. A node whose process or machine dies is run again. The folder of the study
    must be visible on all machines, or be a URL.

    Args:
        work: the work of the study.
        store: where results are kept.
        address: "auto" for the cluster of this machine, "local" for a new one that ends with this process, or
            HOST:PORT.
        cpus: CPUs, and compute threads, per node.
        gpus: GPUs per node.
        retries: how often a node is run again.

    Raises:
        MissingExtraError: Ray is not installed.
        ValueError: there is no cluster at the address, or it is too small.
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
            except OSError as error:  # Includes ConnectionError.
                raise ValueError(
                    f"`--ray {address}`: there is no cluster at this address ({error}). Start one, or give local."
                ) from error
        if self.slots < 1:
            raise ValueError(
                f"`--cpus {cpus:g}` and `--gpus {gpus:g}` are more than the whole cluster at {address} has. Give less."
            )
        self._remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=retries)(_attempt)
        self._shared = ray.put((work, store, max(1, int(cpus))))
        self._store = store
        self._running: dict["ray.ObjectRef[Outcome]", str] = {}

    @property
    def slots(self) -> int:
        """How many nodes the cluster can run now."""
        present = self._ray.cluster_resources()
        room = [
            int(present.get(kind, 0) / share) for kind, share in (("CPU", self._cpus), ("GPU", self._gpus)) if share
        ]
        return min(room, default=1)

    def submit(self, node: DenseModel | Cell) -> None:
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
        except self._ray.exceptions.RayError as error:  # All retries failed.
            self._store.save_error(key, f"{error}\n")
            return Outcome(key, "failed", 0.0, f"{type(error).__name__}: {error}".splitlines()[0])


def _reach(address: str) -> None:
    """Connect to HOST:PORT, and fail fast. Ray itself would wait for minutes and ignore Ctrl-C."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "://" not in address:
        socket.create_connection((host, int(port)), timeout=10).close()


def _attempt(shared: Any, node: DenseModel | Cell) -> Outcome:
    """Run one attempt inside Ray, with as many threads as it has CPUs."""
    import torch

    work, store, threads = shared
    torch.set_num_threads(threads)
    return attempt(work, node, store)
