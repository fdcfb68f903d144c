"""The pool on a real Ray cluster with real faults: each proposal comes back exactly once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import ray

from orchestrator.config import ResourcesConfig
from orchestrator.pool import SimulationPool
from orchestrator.proposal import Finished, Proposal, ProposalKind
from simulators.errors import SimulatorError
from simulators.outcome import Status
from simulators.simulator import SimulatorSpec

FAULTS = """
import os, signal, time
import numpy as np

def simulate(theta):
    kind = int(theta[0])
    if kind == 1: raise ValueError("no good")
    if kind == 2: return np.array([np.nan])
    if kind == 3: os.kill(os.getpid(), signal.SIGSEGV)
    if kind == 4: time.sleep(1000)
    return theta * 2

def slow(theta):
    open(f"{os.environ['TMPDIR_OF_TEST']}/{os.getppid()}", "w").close()
    time.sleep(1000 if not os.path.exists(os.environ['TMPDIR_OF_TEST'] + "/go") else 0)
    return theta
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def faults(tmp_path: Path) -> str:
    (tmp_path / "faults.py").write_text(FAULTS)
    return f"{tmp_path / 'faults.py'}:simulate"


def proposals(kinds: list[int]) -> list[Proposal]:
    return [Proposal(i, np.array([float(k)]), None, ProposalKind.PRIOR, None, i) for i, k in enumerate(kinds)]


def run_all(pool: SimulationPool, wanted: list[Proposal]) -> dict[int, Finished]:
    pool.submit(wanted)
    done: dict[int, Finished] = {}
    while pool.pending:
        for row in pool.poll(1.0):
            assert row.proposal.id not in done
            done[row.proposal.id] = row
    return done


@pytest.mark.usefixtures("cluster")
def test_every_fault_is_one_row_with_its_reason(faults: str) -> None:
    pool = SimulationPool(SimulatorSpec(function=faults, timeout=2.0), ResourcesConfig(), retries=1)
    kinds = [0, 1, 2, 3, 4, 0, 3, 0]
    done = run_all(pool, proposals(kinds))
    statuses = [done[i].outcome.status for i in range(len(kinds))]
    expected = {0: Status.OK, 1: Status.RAISED, 2: Status.NOT_FINITE, 3: Status.CRASHED, 4: Status.TIMEOUT}
    assert statuses == [expected[k] for k in kinds]
    assert [done[i].attempts for i in range(len(kinds))] == [2 if k == 3 else 1 for k in kinds]
    assert all(done[i].outcome.reason for i, k in enumerate(kinds) if k)
    assert done[0].worker.count(":") == 1


@pytest.mark.usefixtures("cluster")
def test_cheap_simulations_share_tasks_and_keep_their_rows(faults: str) -> None:
    pool = SimulationPool(SimulatorSpec(function=faults), ResourcesConfig(), retries=0)
    run_all(pool, proposals([0]))
    wanted = [Proposal(i, np.array([0.0, float(i)]), None, ProposalKind.PRIOR, None, i) for i in range(3000)]
    pool.submit(wanted)
    assert pool.running < 100
    done: dict[int, Finished] = {}
    while pool.pending:
        done |= {row.proposal.id: row for row in pool.poll(1.0)}
    assert all(done[i].outcome.x is not None and done[i].outcome.x[1] == 2.0 * i for i in range(3000))


@pytest.mark.usefixtures("cluster")
def test_a_killed_worker_loses_no_simulation(tmp_path: Path, faults: str) -> None:
    slow = faults.replace(":simulate", ":slow")
    code = Path(slow.rpartition(":")[0])
    code.write_text(code.read_text().replace("os.environ['TMPDIR_OF_TEST']", repr(str(tmp_path / "pids"))))
    (tmp_path / "pids").mkdir()
    pool = SimulationPool(SimulatorSpec(function=slow), ResourcesConfig(), retries=2)
    pool.submit(proposals([7, 8]))
    while not list((tmp_path / "pids").iterdir()):
        assert not pool.poll(0.1)
    (victim,) = list((tmp_path / "pids").iterdir())[:1]
    (tmp_path / "pids" / "go").touch()
    os.kill(int(victim.name), signal.SIGKILL)
    for other in list((tmp_path / "pids").iterdir()):
        if other.name not in (victim.name, "go"):
            os.kill(int(other.name), signal.SIGKILL)
    done: dict[int, Finished] = {}
    while pool.pending:
        done |= {row.proposal.id: row for row in pool.poll(1.0)}
    assert sorted(done) == [0, 1]
    assert all(row.outcome.status is Status.OK for row in done.values())
    assert max(row.attempts for row in done.values()) >= 2


@pytest.mark.usefixtures("cluster")
def test_a_simulator_that_cannot_be_imported_on_a_worker_is_an_error() -> None:
    pool = SimulationPool(SimulatorSpec(function="/nowhere/sim.py:f"), ResourcesConfig(), retries=1)
    with pytest.raises(SimulatorError, match=r"/nowhere/sim\.py"):
        run_all(pool, proposals([0]))


@pytest.mark.usefixtures("cluster")
def test_slots_follow_the_cluster_and_the_needs() -> None:
    spec = SimulatorSpec(function="math:sqrt")
    assert SimulationPool(spec, ResourcesConfig(), 0).slots == 2
    assert SimulationPool(spec, ResourcesConfig(cpus=0.25), 0).slots == 8
    assert SimulationPool(spec, ResourcesConfig(), 0, reserved_cpus=1.0).slots == 1
