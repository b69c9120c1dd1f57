"""Jobs as tasks of Ray: a Ray of two CPUs on this machine, and a cluster of two nodes. Needs the extra ``ray``."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lrx.errors import UserError
from lrx.launch import engine_of
from tests.conftest import command
from tests.engine import stub
from tests.engine.test_submitit import COMPARED, everything, record_of, sweep, until

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is not installed")


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (job,) = stub.jobs(tmp_path, "engine=ray")
    with pytest.raises(UserError, match=r"engine=ray needs the package ray: pip install 'lrx\[ray\]'"):
        engine_of(job.settings)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes with a CPU each."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", stub.install(tmp_path / "stub"))
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        made.add_node(num_cpus=1)
        yield made
    finally:
        made.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_of_two_nodes(cluster: Any, tmp_path: Path) -> None:
    root = tmp_path / "results"
    jobs = stub.jobs(root, f"engine.address={cluster.address}", "engine=ray", seeds=(0, 1, 22, 77, 99), steps=20)
    outcome = sweep(jobs)
    found = {job.seed: (record_of(root, job).status, record_of(root, job).message) for job in jobs}
    assert {seed: status for seed, (status, _) in found.items()} == {
        0: "finished", 1: "finished", 22: "failed", 77: "failed", 99: "interrupted"
    }  # fmt: skip
    assert "a mistake that only the run shows" in found[22][1]
    assert "exit code 7" in found[77][1]
    assert (len(outcome.done), len(outcome.failed), len(outcome.interrupted)) == (2, 2, 1)
    assert stub.steps_of(root, jobs[0]) == list(range(1, 21))

    (long, waiting, third) = stub.jobs(
        root, f"engine.address={cluster.address}", "engine=ray", "engine.cpus_per_job=1", seeds=(2, 3, 4), steps=2000
    )

    def interrupt() -> None:
        until(lambda: sum(bool(stub.steps_of(root, job)) for job in (long, waiting, third)) == 2, 120)
        os.kill(os.getpid(), signal.SIGINT)

    began = time.monotonic()
    outcome = sweep([long, waiting, third], interrupt)
    assert (outcome.signum, len(outcome.interrupted)) == (signal.SIGINT, 3)
    assert time.monotonic() - began < 100
    messages = sorted(record_of(root, job).message for job in (long, waiting, third))
    assert sum("SIGTERM at step" in message for message in messages) == 2  # stopped in good order
    assert sum("Ray cancelled it" in message for message in messages) == 1


@needs_ray
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_results_equal_those_of_the_local_engine(tmp_path: Path) -> None:
    found = {}
    for engine in ("local", "ray"):
        done = command("run.py", "-m", *COMPARED, f"engine={engine}", f"paths.root={tmp_path / engine}", timeout=400)
        assert done.code == 0, done
        found[engine] = everything(tmp_path / engine)
    assert len(found["local"]) >= 6
    assert found["ray"] == found["local"]


@needs_ray
@pytest.mark.parametrize(
    ("address", "reason"), [("127.0.0.1:1", "refused"), ("ray://127.0.0.1:1", "refused"), ("auto", "")]
)
def test_a_cluster_that_is_not_there_is_one_line(address: str, reason: str, tmp_path: Path) -> None:
    (job,) = stub.jobs(tmp_path, "engine=ray", f"engine.address='{address}'")
    with pytest.raises(UserError, match=f"^engine=ray: no Ray at engine.address={address}: .*{reason}") as raised:
        engine_of(job.settings)
    assert "\n" not in str(raised.value)
