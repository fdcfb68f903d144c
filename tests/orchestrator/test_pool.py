"""The pool on a real Ray cluster of several nodes with real faults: each proposal comes back exactly once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
from clusters import ray_cluster
from ray.cluster_utils import Cluster
from waiting import processes_with, wait_until

from orchestrator.config_learner import LearnerConfig
from orchestrator.config_simulator import ResourcesConfig
from orchestrator.placement import Reservation, TrainerPlace
from orchestrator.pool import SimulationPool
from orchestrator.proposal import Finished, ProposalKind, Proposals
from orchestrator.ray_hosts import RayHosts
from simulators.errors import ConfigError, SimulatorError
from simulators.outcome import Outcome, Status
from simulators.simulator import SimulatorSpec

FAULTS = """
import os, signal, sys, time
import numpy as np

def simulate(theta):
    kind = int(theta[0])
    if kind == 1: raise ValueError("no good")
    if kind == 2: return np.array([np.nan])
    if kind == 3: os.kill(os.getpid(), signal.SIGSEGV)
    if kind == 4: time.sleep(1000)
    return theta * 2

def slow(theta):
    open(f"{FOLDER}/{os.getppid()}", "w").close()
    while not os.path.exists(FOLDER + "/go"):
        time.sleep(0.01)
    return theta

def deadly(theta):
    if theta[0] == 13:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1000)
    time.sleep(0.02)
    return theta

def hungry(theta):
    held = np.ones(int(theta[0]) << 17)
    time.sleep(1.0 if theta[0] > 50 else 0.0)
    return held[:1]

def large(theta):
    return np.full(1 << 17, theta[0])
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head and two nodes, of two CPUs each."""
    head = {"num_cpus": 2, "object_store_memory": 80 << 20}
    with ray_cluster(head, {"num_cpus": 2, "labels": {"zone": "b"}}) as cluster:
        yield cluster


@pytest.fixture
def simulator(tmp_path: Path) -> str:
    (tmp_path / "pids").mkdir()
    (tmp_path / "faults.py").write_text(FAULTS.replace("FOLDER", repr(str(tmp_path / "pids"))))
    return f"{tmp_path / 'faults.py'}:"


@pytest.fixture
def pools(nodes: Cluster) -> Iterator[list[SimulationPool]]:
    """Pools to be ended after the test; nothing that they ran may live on."""
    made: list[SimulationPool] = []
    yield made
    for pool in made:
        pool.cancel()
    wait_until(lambda: not processes_with("simulators.runner"))


def make_pool(pools: list[SimulationPool], function: str, retries: int = 1, **options: object) -> SimulationPool:
    spec = {key: options.pop(key) for key in ("timeout", "batched", "grace") if key in options}
    growth = options.pop("memory_growth", 1.0)
    executor = RayHosts(SimulatorSpec(function=function, **spec), ResourcesConfig(**options))  # type: ignore[arg-type]
    pools.append(SimulationPool(executor, retries, growth))  # type: ignore[arg-type]
    return pools[-1]


def proposals(values: list[float]) -> Proposals:
    return Proposals.of_kind(0, np.array(values, dtype=float)[:, None], ProposalKind.PRIOR, 0)


def drain(pool: SimulationPool) -> dict[int, tuple[Outcome, int]]:
    """Outcome and attempts by id, of all that is pending."""
    done: dict[int, tuple[Outcome, int]] = {}
    while pool.num_pending:
        add(done, pool.poll(1.0))
    return done


def add(done: dict[int, tuple[Outcome, int]], rows: Finished) -> None:
    for i, outcome, attempts in zip(rows.proposals.id.tolist(), rows.outcomes, rows.attempts.tolist(), strict=True):
        assert i not in done
        done[i] = (outcome, attempts)


def at_work(pools: list[SimulationPool], simulator: str, folder: Path) -> tuple[SimulationPool, Path]:
    """A pool of which two of three slow simulations run, and the folder in which `go` lets them end."""
    pool = make_pool(pools, simulator + "slow", retries=0)
    pool.submit(proposals([1.0, 2.0, 3.0]))
    pids = folder / "pids"
    wait_until(lambda: not len(pool.poll(0.05)) and len(list(pids.iterdir())) == 2)
    return pool, pids


def test_every_fault_is_one_row_with_its_reason(pools: list[SimulationPool], simulator: str) -> None:
    pool = make_pool(pools, simulator + "simulate", timeout=2.0, grace=0.2)
    kinds = [0, 1, 2, 3, 4, 0, 3, 0]
    pool.submit(proposals([float(k) for k in kinds]))
    done = drain(pool)
    expected = {0: Status.OK, 1: Status.RAISED, 2: Status.NOT_FINITE, 3: Status.CRASHED, 4: Status.TIMEOUT}
    assert [done[i][0].status for i in range(len(kinds))] == [expected[k] for k in kinds]
    assert [done[i][1] for i in range(len(kinds))] == [2 if k == 3 else 1 for k in kinds]
    assert all(done[i][0].reason for i, k in enumerate(kinds) if k)


def test_cheap_simulations_share_tasks_and_keep_their_rows(pools: list[SimulationPool], simulator: str) -> None:
    pool = make_pool(pools, simulator + "simulate")
    theta = np.stack([np.zeros(30_000), np.arange(30_000)], axis=1)
    pool.submit(Proposals.of_kind(0, theta, ProposalKind.PRIOR, 0))
    rows = []
    tasks = 0
    while pool.num_pending:
        tasks = max(tasks, pool.running)
        rows.append(pool.poll(1.0))
    finished = Finished.concatenate([part for part in rows if len(part)])
    x = finished.outcomes.matrix(2)
    assert np.array_equal(np.sort(finished.proposals.id), np.arange(30_000))
    assert np.array_equal(x[:, 1], 2.0 * finished.proposals.id)
    assert tasks < 50


def test_a_killed_worker_loses_no_simulation(pools: list[SimulationPool], simulator: str, tmp_path: Path) -> None:
    pool = make_pool(pools, simulator + "slow", retries=0)
    pool.submit(proposals([7.0, 8.0, 9.0, 10.0, 11.0]))
    folder = tmp_path / "pids"

    def started() -> bool:
        assert not len(pool.poll(0.05))
        return len(list(folder.iterdir())) == 2

    wait_until(started)
    for worker in [int(entry.name) for entry in folder.iterdir()]:
        os.kill(worker, signal.SIGKILL)
    (folder / "go").touch()
    done = drain(pool)
    assert sorted(done) == [0, 1, 2, 3, 4]
    assert all(outcome.status is Status.OK for outcome, _ in done.values())
    assert max(attempts for _, attempts in done.values()) >= 2


def test_poison_fails_and_harms_no_other(pools: list[SimulationPool], simulator: str) -> None:
    pool = make_pool(pools, simulator + "deadly", retries=1)
    values = [float(i) for i in range(30)]
    pool.submit(proposals(values))
    done = drain(pool)
    bad = {i: outcome for i, (outcome, _) in done.items() if outcome.status is not Status.OK}
    assert sorted(done) == list(range(30))
    assert list(bad) == [13]
    assert bad[13].status is Status.WORKER_LOST
    assert "its worker was lost" in bad[13].reason
    assert done[13][1] >= 2


def test_a_worker_that_falls_silent_is_given_up(
    pools: list[SimulationPool], simulator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.ray_hosts._SILENCE_SECONDS", 8.0)
    pool, folder = at_work(pools, simulator, tmp_path)
    os.kill(int(next(folder.iterdir()).name), signal.SIGSTOP)
    wait_until(lambda: not len(pool.poll(0.05)) and len(pool.executor._fleet.hosts) < 2)  # type: ignore[attr-defined]
    (folder / "go").touch()
    done = drain(pool)
    assert sorted(done) == [0, 1, 2]
    assert {outcome.status for outcome, _ in done.values()} == {Status.OK}


def test_no_worker_is_silent_while_nobody_listens(
    pools: list[SimulationPool], simulator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, folder = at_work(pools, simulator, tmp_path)
    # As if this program had been away for an hour.
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 3600.0, sleep=time.sleep)
    monkeypatch.setattr("orchestrator.ray_hosts.time", later)
    assert not len(pool.poll(0.0))
    (folder / "go").touch()
    done = drain(pool)
    assert sorted(done) == [0, 1, 2]
    assert {(outcome.status, attempts) for outcome, attempts in done.values()} == {(Status.OK, 1)}


def test_no_worker_is_silent_while_this_program_is_suspended(
    pools: list[SimulationPool], simulator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, folder = at_work(pools, simulator, tmp_path)
    # As if it had been stopped for an hour while it waited.
    away, wait = [0.0], ray.wait

    def suspended(*arguments: Any, **options: Any) -> Any:
        found = wait(*arguments, **options)
        away[0] += 3600.0
        return found

    later = SimpleNamespace(monotonic=lambda: time.monotonic() + away[0], sleep=time.sleep)
    monkeypatch.setattr("orchestrator.ray_hosts.time", later)
    monkeypatch.setattr(ray, "wait", suspended)
    assert not len(pool.poll(0.0))
    monkeypatch.setattr(ray, "wait", wait)
    assert away[0] >= 3600.0
    (folder / "go").touch()
    done = drain(pool)
    assert sorted(done) == [0, 1, 2]
    assert {(outcome.status, attempts) for outcome, attempts in done.values()} == {(Status.OK, 1)}


def test_a_node_that_leaves_and_one_that_joins(
    nodes: Cluster, pools: list[SimulationPool], simulator: str, tmp_path: Path
) -> None:
    extra = nodes.add_node(num_cpus=2)
    pool = make_pool(pools, simulator + "slow", retries=0)
    wait_until(lambda: bool(pool.executor.warm_up(0.1)) and pool.slots == 6)
    pool.submit(proposals([float(i) for i in range(12)]))
    folder = tmp_path / "pids"
    wait_until(lambda: not len(pool.poll(0.05)) and len(list(folder.iterdir())) == 3)
    nodes.remove_node(extra, allow_graceful=False)
    wait_until(lambda: not len(pool.poll(0.05)) and pool.slots == 4)
    (folder / "go").touch()
    done = drain(pool)
    assert sorted(done) == list(range(12))
    assert {outcome.status for outcome, _ in done.values()} == {Status.OK}
    late = nodes.add_node(num_cpus=3)
    wait_until(lambda: not len(pool.poll(0.05)) and pool.slots == 7)
    nodes.remove_node(late, allow_graceful=True)


def test_out_of_memory_is_tried_again_with_more(pools: list[SimulationPool], simulator: str) -> None:
    pool = make_pool(pools, simulator + "hungry", memory=150_000_000, memory_growth=2.0)
    pool.submit(proposals([1.0, 180.0, 1000.0, 2.0]))
    done = drain(pool)
    assert [done[i][0].status for i in range(4)] == ["ok", "ok", "out_of_memory", "ok"]
    assert done[1][1] == 2
    assert "more than its memory of 300 MB" in done[2][0].reason


def test_out_of_memory_is_final_unless_more_is_allowed(pools: list[SimulationPool], simulator: str) -> None:
    pool = make_pool(pools, simulator + "hungry", memory=150_000_000)
    pool.submit(proposals([180.0]))
    ((outcome, attempts),) = drain(pool).values()
    assert (outcome.status, attempts) == (Status.OUT_OF_MEMORY, 1)


def test_results_larger_than_the_object_store_come_through(pools: list[SimulationPool], simulator: str) -> None:
    pool = make_pool(pools, simulator + "large")
    pool.submit(proposals([float(i) for i in range(200)]))
    seen: set[int] = set()
    while pool.num_pending:
        if not len(rows := pool.poll(1.0)):
            continue
        x = rows.outcomes.matrix(1 << 17)
        assert np.array_equal(x[:, -1], rows.proposals.theta[:, 0])
        assert not seen & set(rows.proposals.id.tolist())
        seen |= set(rows.proposals.id.tolist())
    assert len(seen) == 200


@pytest.mark.usefixtures("nodes")
def test_a_simulator_that_cannot_be_imported_on_a_worker_is_an_error(pools: list[SimulationPool]) -> None:
    pool = make_pool(pools, "/nowhere/sim.py:f")
    pool.submit(proposals([0.0]))
    with pytest.raises(SimulatorError, match=r"/nowhere/sim\.py"):
        drain(pool)


def place_on(node: str) -> TrainerPlace:
    place = TrainerPlace(LearnerConfig())
    place.cpus, place.reservation = 1.0, Reservation(node, {"CPU": 1.0})
    return place


def test_slots_follow_the_cluster_the_needs_and_the_labels(pools: list[SimulationPool], simulator: str) -> None:
    def slots(reserved: TrainerPlace | None = None, **needs: object) -> int:
        spec = SimulatorSpec(function=simulator + "simulate")
        executor = RayHosts(spec, ResourcesConfig(**needs), reserved)  # type: ignore[arg-type]
        pools.append(SimulationPool(executor, 0))
        wait_until(lambda: executor.warm_up(0.1))
        found = executor.slots
        executor.stop()
        wait_until(lambda: ray.available_resources().get("CPU", 0) == ray.cluster_resources()["CPU"])
        return found

    wait_until(lambda: ray.available_resources().get("CPU", 0) == ray.cluster_resources()["CPU"])
    assert slots() == 4
    assert slots(cpus=0.25) == 16
    assert slots(labels={"zone": "b"}) == 2
    head = next(node for node in ray.nodes() if "zone" not in node["Labels"])
    assert slots(place_on(head["NodeID"])) == 3


def test_what_is_reserved_stays_free_however_late_it_is_taken(
    pools: list[SimulationPool], simulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.fleet._SCAN_SECONDS", 0.0)
    wait_until(lambda: ray.available_resources().get("CPU", 0) == ray.cluster_resources()["CPU"])
    head = next(node for node in ray.nodes() if "zone" not in node["Labels"])
    executor = RayHosts(
        SimulatorSpec(function=simulator + "simulate"),
        ResourcesConfig(),
        place_on(head["NodeID"]),
    )
    pools.append(SimulationPool(executor, 0))
    wait_until(lambda: executor.warm_up(0.1) and ray.available_resources().get("CPU", 0) == 1.0)
    for _ in range(5):
        executor.wait(0.05)
    assert executor.slots == 3


def test_nothing_starts_after_the_end(
    pools: list[SimulationPool], simulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.fleet._SCAN_SECONDS", 0.0)
    pool = make_pool(pools, simulator + "simulate")
    wait_until(lambda: pool.executor.warm_up(0.1))
    found = pool.slots
    pool.cancel()
    wait_until(lambda: ray.available_resources().get("CPU", 0) == ray.cluster_resources()["CPU"])
    assert pool.slots == found  # metrics are written down after the last simulation
    assert not pool.executor._fleet.hosts  # type: ignore[attr-defined]


def test_what_no_worker_has_yet_can_be_withdrawn(pools: list[SimulationPool], simulator: str, tmp_path: Path) -> None:
    pool = make_pool(pools, simulator + "slow")
    wait_until(lambda: pool.executor.warm_up(0.1))
    pool.submit(proposals([1.0] * 40))
    running = pool.num_pending - pool.withdraw()
    assert 0 < running < 40
    assert len(pool.pending) == running
    (tmp_path / "pids" / "go").touch()
    assert len(drain(pool)) == running


def test_needs_that_no_node_has_are_an_error(
    nodes: Cluster, pools: list[SimulationPool], simulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.ray_hosts._WARM_SECONDS", 1.0)
    pool = make_pool(pools, simulator + "simulate", gpus=1.0)
    with pytest.raises(ConfigError, match=r"needs 1 CPU, 1 GPU, but no node"):
        wait_until(lambda: pool.executor.warm_up(0.1))
