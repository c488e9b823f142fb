"""Each cell gets its report on a real Ray cluster, although one of its two nodes is lost half-way."""

import time
from pathlib import Path
from typing import Any

import pytest

from hf_compress.report.report import REPORT_NAME
from hf_compress.study.run.engine import Progress, run_plan
from hf_compress.study.run.node import Outcome
from hf_compress.study.run.ray_cluster import RayWorkers
from hf_compress.study.run.store import Store
from hf_compress.study.run.workers import SerialWorkers
from tests.study.stub import Stub, planned

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")


def reports(folder: Path) -> dict[str, str]:
    return {file.parent.name: file.read_text() for file in folder.glob(f"*/{REPORT_NAME}")}


@pytest.mark.slow
def test_losing_a_machine_costs_no_report(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    whole = planned(tasks=["sst2"])
    calm, store = Store(tmp_path / "undisturbed"), Store(tmp_path / "out")
    assert run_plan(whole, calm, SerialWorkers(Stub(tmp_path / "other"), calm)).finished
    # The head runs nothing, so the lost machine is one with work.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        machines = [cluster.add_node(num_cpus=1) for _ in range(2)]
        cluster.wait_for_nodes()
        work = Stub(tmp_path / "diary", seconds=0.3, failing=frozenset({next(reversed(whole.cells))}))
        workers = RayWorkers(work, store, cluster.address)
        assert workers.slots == 2
        lost: list[Any] = []

        def lose(progress: Progress, outcome: Outcome | None) -> None:
            if not lost and len(progress.done) >= 6:
                time.sleep(0.1)  # Let the next cells start.
                lost.append(machines.pop())
                cluster.remove_node(lost[0], allow_graceful=False)

        progress = run_plan(whole, store, workers, listener=lose)
        assert lost
        # A failure is not retried; a node that died with its machine is.
        assert list(progress.failed) == [next(reversed(whole.cells))]
        assert work.begun().count(next(reversed(whole.cells))) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert run_plan(whole, store, SerialWorkers(Stub(work.diary), store), retry_failed=True).finished
    assert reports(tmp_path / "out") == reports(tmp_path / "undisturbed")


def test_a_missing_cluster_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ValueError, match="there is no cluster at this address"):
        RayWorkers(Stub(tmp_path / "diary"), store, "127.0.0.1:1")
