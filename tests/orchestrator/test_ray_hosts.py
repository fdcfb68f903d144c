"""Hosts of different width, and nodes where none can be: on a real Ray cluster."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from clusters import ray_cluster
from ray.cluster_utils import Cluster
from waiting import PATIENCE, wait_until

from orchestrator import ray_calls
from orchestrator.config_learner import LearnerConfig
from orchestrator.config_simulator import ResourcesConfig
from orchestrator.executor import Blame, Ended, Lost
from orchestrator.host import Pulse
from orchestrator.nowhere import FailedStarts
from orchestrator.placement import TrainerPlace
from orchestrator.ray_hosts import RayHosts
from simulators.errors import ConfigError, SimulatorError
from simulators.outcome import Status
from simulators.simulator import SimulatorSpec

SIMULATORS = """
import os, time
import numpy as np

def hungry(theta):
    held = np.ones(int(theta[0]) << 17)
    time.sleep(1.0)  # to be seen by the watch over memory
    return held[:1]

def patient(theta):
    open(os.path.join(os.path.dirname(GO), f"began{int(theta[0])}"), "w").close()
    while not os.path.exists(GO):
        time.sleep(0.01)
    return theta
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head that runs nothing, a narrow node and a wide one."""
    head = {"num_cpus": 0, "object_store_memory": 80 << 20}
    narrow, wide = ({"num_cpus": n, "labels": {"width": name}} for n, name in ((2, "narrow"), (4, "wide")))
    with ray_cluster(head, narrow, wide) as cluster:
        yield cluster


@pytest.fixture
def simulator(tmp_path: Path) -> str:
    (tmp_path / "sim.py").write_text(SIMULATORS.replace("GO", repr(str(tmp_path / "go"))))
    return f"{tmp_path / 'sim.py'}:"


@pytest.fixture
def executors(nodes: Cluster) -> Iterator[list[RayHosts]]:
    """Executors to be stopped after the test; the next one finds a free cluster."""
    made: list[RayHosts] = []
    yield made
    for executor in made:
        executor.stop()
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])


def make(executors: list[RayHosts], function: str, place: TrainerPlace | None = None, **resources: object) -> RayHosts:
    spec = SimulatorSpec(function=function)
    executors.append(RayHosts(spec, ResourcesConfig(**resources), place))  # type: ignore[arg-type]
    return executors[-1]


def start(executor: RayHosts, task: int, share: int = 1, alone: bool = False, value: float = 0.0) -> None:
    executor.start(task, np.array([[value]]), np.array([task]), share, alone)


def ends(executor: RayHosts, number: int) -> dict[int, Ended | Lost]:
    """The ends of `number` tasks, by task."""
    found: dict[int, Ended | Lost] = {}

    def all_ended() -> bool:
        for end in executor.wait(0.05):
            assert end.task not in found
            found[end.task] = end
        return len(found) == number

    wait_until(all_ended)
    return found


def host_of_width(executor: RayHosts, width: int) -> Any:
    [host] = [host for host in executor._fleet.hosts if host.width == width]
    return host


def test_what_needs_many_slots_waits_for_a_host_that_has_them(executors: list[RayHosts], simulator: str) -> None:
    executor = make(executors, simulator + "hungry", memory=150_000_000)
    wait_until(lambda: executor.warm_up(0.1) and executor.slots == 6)
    for task in range(3):
        start(executor, task, share=4, value=400.0)  # MiB, more than two slots have
    for end in ends(executor, 3).values():
        assert isinstance(end, Ended)
        assert end.outcomes.status.tolist() == [list(Status).index(Status.OK)]


def test_what_no_host_has_slots_for_takes_the_widest(executors: list[RayHosts], simulator: str) -> None:
    executor = make(executors, simulator + "patient")
    wait_until(lambda: executor.warm_up(0.1) and executor.slots == 6)
    for task in range(3):
        start(executor, task, share=16)
    assert [order.share for order in host_of_width(executor, 4).tasks.values()] == [4, 4, 4]


def test_what_is_taken_back_goes_where_it_fits(executors: list[RayHosts], simulator: str, tmp_path: Path) -> None:
    executor = make(executors, simulator + "patient")
    wait_until(lambda: executor.warm_up(0.1) and executor.slots == 6)
    start(executor, 0, share=4)
    start(executor, 1, share=4)
    executor.wait(0.05)
    wide = host_of_width(executor, 4)
    assert wide.load == 8
    # The narrow host is idle, but too narrow: nothing is taken back for it.
    executor._balance()
    assert wide.withdrawing is None
    wide.withdrawing = wide.actor.withdraw.remote(1)
    wait_until(lambda: not executor.wait(0.05) and wide.withdrawing is None)
    assert list(wide.tasks) == [0, 1]
    (tmp_path / "go").touch()
    assert all(isinstance(end, Ended) for end in ends(executor, 2).values())


def test_what_is_recalled_does_not_start_and_what_runs_goes_on(
    executors: list[RayHosts], simulator: str, tmp_path: Path
) -> None:
    executor = make(executors, simulator + "patient", labels={"width": "narrow"})
    wait_until(lambda: executor.warm_up(0.1) and executor.slots == 2)
    for task in range(6):
        start(executor, task, value=task)
    wait_until(lambda: not executor.wait(0.05) and len(list(tmp_path.glob("began*"))) == 2)
    start(executor, 6, value=6)  # The host has not been told of it yet.
    executor.recall()
    lost = ends(executor, 5)
    assert sorted(lost) == [2, 3, 4, 5, 6]
    assert {(end.started, end.blame) for end in lost.values() if isinstance(end, Lost)} == {(False, Blame.NONE)}
    (tmp_path / "go").touch()
    assert all(isinstance(end, Ended) for end in ends(executor, 2).values())
    assert len(list(tmp_path.glob("began*"))) == 2


def test_a_cluster_that_does_not_answer_holds_up_nobody(
    executors: list[RayHosts], simulator: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make(executors, simulator + "patient", labels={"width": "narrow"})
    wait_until(lambda: executor.warm_up(0.1) and executor.slots == 2)
    start(executor, 0)
    executor.wait(0.05)
    released = threading.Event()

    def hang() -> list[dict[str, Any]]:
        assert released.wait(PATIENCE / 10)
        return []

    with monkeypatch.context() as patched:
        patched.setattr("orchestrator.ray_calls._ANSWER_SECONDS", 0.1)
        patched.setattr("orchestrator.fleet._SCAN_SECONDS", 0.0)
        patched.setattr(ray, "nodes", hang)
        assert executor.wait(0.05) == []
        assert ray_calls._under_way.locked()
        executor.recall()
        (tmp_path / "go").touch()
        assert isinstance(ends(executor, 1)[0], Ended)
        assert ray_calls._under_way.locked()
        released.set()
        wait_until(lambda: not ray_calls._under_way.locked())


def test_what_is_taken_back_when_all_hosts_run_tasks_alone_waits_behind_them(
    executors: list[RayHosts], simulator: str, tmp_path: Path
) -> None:
    executor = make(executors, simulator + "patient")
    wait_until(lambda: executor.warm_up(0.1) and executor.slots == 6)
    for task in range(9):
        start(executor, task)
    executor.wait(0.05)
    wide = host_of_width(executor, 4)
    wide.withdrawing = wide.actor.withdraw.remote(1)
    start(executor, 9, alone=True)
    start(executor, 10, alone=True)
    assert executor.room(None) == 0
    wait_until(lambda: not executor.wait(0.05) and wide.withdrawing is None)
    (tmp_path / "go").touch()
    assert all(isinstance(end, Ended) for end in ends(executor, 11).values())
    assert executor.room(None) > 0


def test_a_host_that_cannot_start_its_simulator_again_is_replaced(
    executors: list[RayHosts], simulator: str, tmp_path: Path
) -> None:
    executor = make(executors, simulator + "patient", labels={"width": "narrow"})
    wait_until(lambda: executor.warm_up(0.1) and executor.slots == 2)
    start(executor, 0)
    executor.wait(0.05)
    host = host_of_width(executor, 2)
    [lost] = executor._hear(host, ray.put(Pulse([], "no room on the disk", False)))
    assert isinstance(lost, Lost)
    assert (lost.task, lost.started, lost.blame) == (0, True, Blame.SUSPECT)
    assert lost.reason.endswith("is out of order: no room on the disk")
    wait_until(lambda: executor.warm_up(0.1))
    assert host_of_width(executor, 2) is not host
    (tmp_path / "go").touch()
    start(executor, 0)
    assert all(isinstance(end, Ended) for end in ends(executor, 1).values())


def test_a_process_that_is_slow_to_start_again_is_not_late(executors: list[RayHosts], tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        f"import os, time\nFOLDER = {str(tmp_path)!r}\n"
        "def at(name): return os.path.exists(os.path.join(FOLDER, name))\n"
        "if at('crashed'):\n"
        "    open(os.path.join(FOLDER, 'again'), 'w').close()\n"
        "    while not at('go'): time.sleep(0.01)\n"
        "def simulate(theta):\n"
        "    if not at('crashed'):\n"
        "        open(os.path.join(FOLDER, 'crashed'), 'w').close()\n"
        "        os._exit(1)\n"
        "    return theta\n"
    )

    def is_late_at_once(self: Any) -> None:
        self._spec = dataclasses.replace(self._spec, timeout=-1e9)
        assert len(self._running) == 1

    spec = SimulatorSpec(function=f"{tmp_path / 'slow.py'}:simulate", timeout=PATIENCE, grace=0.0)
    executors.append(RayHosts(spec, ResourcesConfig(labels={"width": "narrow"})))  # type: ignore[arg-type]
    executor = executors[-1]
    wait_until(lambda: executor.warm_up(0.1))
    executor.start(0, np.array([[1.0], [2.0]]), np.arange(2), 1, False)
    wait_until(lambda: not executor.wait(0.05) and (tmp_path / "again").exists())
    actor = host_of_width(executor, 2).actor
    ray.get(actor.__ray_call__.remote(is_late_at_once))
    assert not ray.get(actor.__ray_call__.remote(lambda self: self._overdue()))
    (tmp_path / "go").touch()


def test_a_simulator_that_never_starts_ends_the_campaign(executors: list[RayHosts], tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise OSError('no room')\n")
    executor = make(executors, f"{tmp_path / 'broken.py'}:simulate")
    with pytest.raises(SimulatorError, match=r"cannot be started on .*no room.*; install there what it needs"):
        wait_until(lambda: executor.warm_up(0.1))


def test_a_node_without_what_the_simulator_needs_is_set_aside(
    nodes: Cluster,
    executors: list[RayHosts],
    simulator: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with (tmp_path / "sim.py").open("a") as file:
        file.write("if os.environ.get('TEST_LACKS'): raise ImportError('libmesh.so: cannot open it')\n")
    monkeypatch.setattr("orchestrator.nowhere._SHORTEST_PAUSE", 3600.0)
    executor = make(executors, simulator + "patient")
    wait_until(lambda: executor.warm_up(0.1) and executor.slots == 6)
    for task in range(6):
        start(executor, task)
    poor = nodes.add_node(num_cpus=2, env_vars={"TEST_LACKS": "1"})
    with caplog.at_level(logging.WARNING):
        wait_until(lambda: not executor.wait(0.05) and poor.node_id in executor._fleet._failed)
    assert "libmesh.so: cannot open it" in caplog.text
    (tmp_path / "go").touch()
    assert all(isinstance(end, Ended) for end in ends(executor, 6).values())
    assert executor.slots == 6
    nodes.remove_node(poor, allow_graceful=True)


def test_what_the_trainer_keeps_is_named_if_simulations_need_it(
    nodes: Cluster, executors: list[RayHosts], simulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.ray_hosts._WARM_SECONDS", 0.0)
    extra = nodes.add_node(num_cpus=2, num_gpus=1)
    executor = make(executors, simulator + "patient", TrainerPlace(LearnerConfig()), gpus=1.0)
    with pytest.raises(ConfigError, match=r"set `learner: \{gpus: 0\}`, for the trainer keeps GPU for itself"):
        executor.warm_up(0.0)
    # What would not be enough without the trainer either is not blamed on it.
    executor = make(executors, simulator + "patient", TrainerPlace(LearnerConfig()), gpus=2.0)
    with pytest.raises(ConfigError, match=r"needs 1 CPU, 2 GPU, but no node(?!.*trainer)"):
        executor.warm_up(0.0)
    executor = make(executors, simulator + "patient", TrainerPlace(LearnerConfig(gpus=0.0)), gpus=1.0)
    wait_until(lambda: executor.warm_up(0.1))
    executor.stop()
    nodes.remove_node(extra, allow_graceful=True)


def start_trainer(place: TrainerPlace) -> Any:
    """An actor in the trainer's place; the cluster's workers cannot import this file."""

    class Trainer:
        def node(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    trainer = ray.remote(Trainer).options(**place.options).remote()  # type: ignore[call-overload]
    place.taken_by(trainer)
    return trainer


def test_the_trainers_place_moves_when_its_node_is_replaced(
    nodes: Cluster, executors: list[RayHosts], simulator: str
) -> None:
    node = nodes.add_node(num_cpus=8, labels={"width": "spare"})
    place = TrainerPlace(LearnerConfig(cpus=5.0, gpus=0.0))
    executor = make(executors, simulator + "patient", place, labels={"width": "spare"})
    wait_until(lambda: executor.warm_up(0.1) and executor.slots == 3)
    assert place.reservation is not None and place.reservation.node == node.node_id
    gone = node.node_id
    nodes.remove_node(node, allow_graceful=False)
    # Ray takes a while to notice.
    wait_until(lambda: not executor.wait(0.05) and not any(n["Alive"] and n["NodeID"] == gone for n in ray.nodes()))
    node = nodes.add_node(num_cpus=8, labels={"width": "spare"})
    wait_until(lambda: not executor.wait(0.05) and bool(executor._fleet.ready))
    assert place.reservation.node == node.node_id
    assert executor.slots == 3
    trainer = start_trainer(place)
    assert ray.get(trainer.node.remote(), timeout=PATIENCE) == node.node_id
    ray.kill(trainer)
    nodes.remove_node(node, allow_graceful=True)


def test_a_host_ends_where_the_trainer_would_have_no_place(
    nodes: Cluster, executors: list[RayHosts], simulator: str, tmp_path: Path
) -> None:
    first = nodes.add_node(num_cpus=6)
    place = TrainerPlace(LearnerConfig(cpus=3.0, gpus=0.0))
    executor = make(executors, simulator + "patient", place)
    wait_until(lambda: executor.warm_up(0.1) and executor.slots == 2 + 4 + 3)
    assert place.reservation is not None and place.reservation.node == first.node_id
    nodes.remove_node(first, allow_graceful=False)
    wait_until(lambda: not executor.wait(0.05) and executor.slots == 2 + 4)
    wide = host_of_width(executor, 4)
    wait_until(lambda: not executor.wait(0.05) and place.reservation.node == wide.node)
    # Until the trainer is to start, simulations go on in its place.
    assert wide in executor._fleet.hosts
    for task in range(6):
        start(executor, task)
    executor.wait(0.05)
    on_wide = set(wide.tasks)
    assert len(on_wide) == 4
    trainer = start_trainer(place)
    lost = ends(executor, 4)
    assert set(lost) == on_wide
    for end in lost.values():
        assert isinstance(end, Lost)
        assert end.blame is Blame.NONE
        assert "made room for the trainer" in end.reason
    assert ray.get(trainer.node.remote(), timeout=PATIENCE) == wide.node
    wait_until(lambda: not executor.wait(0.05) and executor.slots == 2 + 1)
    (tmp_path / "go").touch()
    assert all(isinstance(end, Ended) for end in ends(executor, 2).values())
    ray.kill(trainer)


def test_a_trainer_without_a_place_is_told(nodes: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    place = TrainerPlace(LearnerConfig(cpus=1.0, gpus=2.0))
    place.look(ray.nodes(), {}, {})
    assert place.reservation is None
    trainer = start_trainer(place)
    place._since -= 3600.0
    with caplog.at_level(logging.WARNING):
        place.look(ray.nodes(), {}, {})
        place.look(ray.nodes(), {}, {})
    [record] = caplog.records
    assert record.getMessage().startswith("the trainer waits for 1 CPU and 2 GPU, which no node of the cluster has")
    ray.kill(trainer)
    wait_until(lambda: place.look(ray.nodes(), {}, {}) is None and not place.waits)


def test_a_node_where_hosts_cannot_start_is_named_once_and_left_alone(
    nodes: Cluster,
    executors: list[RayHosts],
    simulator: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Read when Python starts: as if temperflow were not installed there.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['orchestrator'] = None\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    broken = nodes.add_node(num_cpus=2, labels={"width": "none"}, env_vars=environment)
    monkeypatch.setattr("orchestrator.fleet._SCAN_SECONDS", 0.0)
    monkeypatch.setattr("orchestrator.nowhere._SHORTEST_PAUSE", 1e-3)
    monkeypatch.setattr("orchestrator.nowhere._LONGEST_PAUSE", 1e-3)
    executor = make(executors, simulator + "patient", labels={"width": "none"})
    tried = set()

    def tried_thrice() -> bool:
        assert not executor.warm_up(0.1)
        tried.update(host.actor._actor_id for host in executor._fleet.hosts)
        return len(tried) >= 3

    with caplog.at_level(logging.WARNING):
        wait_until(tried_thrice)
    assert [record.name for record in caplog.records] == ["orchestrator.nowhere"]
    assert "No module named 'orchestrator" in caplog.text
    executor.stop()

    monkeypatch.setattr("orchestrator.nowhere._SHORTEST_PAUSE", 3600.0)
    executor = make(executors, simulator + "patient", labels={"width": "none"})
    wait_until(lambda: not executor.warm_up(0.1) and bool(str(executor._fleet._failed)))
    wait_until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"])
    for _ in range(5):
        executor.wait(0.05)
        assert not executor._fleet.hosts
    monkeypatch.setattr("orchestrator.ray_hosts._WARM_SECONDS", 0.0)
    with pytest.raises(ConfigError, match=r"could be started: on .* died: ModuleNotFoundError: .*same Python"):
        executor.warm_up(0.0)
    nodes.remove_node(broken, allow_graceful=True)


def test_pauses_grow_to_a_bound_and_end_with_a_host_that_starts() -> None:
    failed = FailedStarts()
    assert not str(failed)
    assert not failed.pausing("a", 0.0)
    now, pauses = 0.0, []
    for _ in range(10):
        failed.add("a", "host-a", "out of order", now)
        failed.add("a", "host-a", "out of order", now)  # started together
        pause = next(p for p in range(1, 1000) if not failed.pausing("a", now + p))
        pauses.append(pause)
        now += pause
    assert pauses == [2, 4, 8, 16, 32, 60, 60, 60, 60, 60]
    assert not failed.pausing("b", 0.0)
    failed.forget("a")
    failed.add("a", "host-a", "out of order", now)
    assert failed.pausing("a", now + 1.0)
    assert not failed.pausing("a", now + 2.0)
