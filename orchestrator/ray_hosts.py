"""Simulations on a Ray cluster: hosts on its nodes, as many as fit, more and fewer as nodes come and go."""

from __future__ import annotations

__all__ = ["RayHosts", "Reservation", "free_resources"]

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.state import actors, available_resources_per_node
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from simulators.errors import ConfigError, SimulatorError
from simulators.outcome import Array
from simulators.simulator import Seeds, SimulatorSpec

from .config import ResourcesConfig
from .executor import Blame, Ended, Lost
from .host import Host, Pulse

logger = logging.getLogger(__name__)

#: Slots of one host: many share a Ray worker, few are lost with it.
_WIDEST = 16
_SCAN_SECONDS = 2.0
#: A host that could not be placed by then looks for another node: its resources went to somebody else.
_PLACE_SECONDS = 30.0
#: Hosts speak at least every five seconds.
_SILENCE_SECONDS = 60.0
_WARM_SECONDS = 120.0
#: Longest delay of this program's loop against which tasks are kept at hand.
_LATENCY_SECONDS = 0.5


@dataclass(frozen=True)
class Reservation:
    """Resources of a node that are not for simulations, whether or not they are in use yet."""

    node: str
    resources: Mapping[str, float]


@dataclass(eq=False)
class _Host:
    actor: Any
    node: str
    width: int
    since: float
    starting: ray.ObjectRef[Any] | None
    worker: str = ""
    pulse: ray.ObjectRef[Any] | None = None
    heard: float = 0.0
    #: Task to its share, in the order of coming.
    tasks: dict[int, int] = field(default_factory=dict)
    alone: int | None = None
    load: int = 0


class RayHosts:
    """An `Executor` on the Ray cluster that this program has joined.

    Arguments:
        spec: The simulator.
        resources: What one simulation needs.
        reserved: Resources that are not for simulations.

    Raises:
        ConfigError: No node of the cluster can ever run a simulation, on `warm_up`.
    """

    def __init__(self, spec: SimulatorSpec, resources: ResourcesConfig, reserved: Reservation | None = None) -> None:
        self._resources, self._reserved = resources, reserved
        self._spec = ray.put(spec)
        self._hosts: list[_Host] = []
        self._scanned = -math.inf
        self._begin = time.monotonic()

    @property
    def slots(self) -> int:
        """Slots of the hosts that are ready, else of those that are starting."""
        self._scan()
        ready = sum(host.width for host in self._ready())
        return max(1, ready or sum(host.width for host in self._hosts))

    @property
    def widest(self) -> int:
        """Slots of the largest host."""
        return max((host.width for host in self._hosts), default=1)

    def room(self, seconds: float | None) -> int:
        """How many more tasks of about `seconds` keep all slots busy until the next call."""
        # What waits at one host cannot go to another: not more than is needed, least of all where it takes long.
        ahead = 0.0 if seconds is None else _LATENCY_SECONDS / max(seconds, 1e-3)
        return sum(
            max(0, host.width + 1 + math.ceil(min(1.0, ahead) * host.width) - host.load)
            for host in self._ready()
            if host.alone is None
        )

    def warm_up(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds; whether every host that fits on the cluster has started its processes.

        After two minutes those that have are enough; if there is none by then, `ConfigError` says what is missing.
        """
        self._scan()
        if all(host.starting is None for host in self._hosts) and self._hosts:
            return True
        self._poll(timeout)
        if time.monotonic() - self._begin < _WARM_SECONDS:
            return False
        if not self._hosts:
            raise ConfigError(self._nowhere())
        return bool(self._ready())

    def start(self, task: int, theta: Array, seeds: Seeds, share: int, alone: bool) -> None:
        """Hands a task to the host that has most to spare."""
        candidates = [host for host in self._ready() if host.alone is None]
        assert candidates, "room() said that there is room"
        host = max(candidates, key=lambda h: ((h.width - h.load) / h.width, -h.load))
        if alone:
            host.alone, share = task, host.width
        host.tasks[task] = min(share, host.width)
        host.load += host.tasks[task]
        host.actor.submit.remote(task, theta, seeds, share)

    def wait(self, timeout: float) -> list[Ended | Lost]:
        """What has come to an end, waiting up to `timeout` seconds for the first."""
        self._scan()
        return self._poll(timeout)

    def now(self) -> float:
        """Seconds of a clock that nobody sets back."""
        return time.monotonic()

    def stop(self) -> None:
        """Ends all hosts, with all that they run."""
        for host in self._hosts:
            ray.kill(host.actor)
        self._hosts.clear()

    def _ready(self) -> list[_Host]:
        return [host for host in self._hosts if host.starting is None]

    def _poll(self, timeout: float) -> list[Ended | Lost]:
        waiting = {host.starting or host.pulse: host for host in self._hosts}
        if not waiting:
            time.sleep(timeout)
            return []
        refs = [ref for ref in waiting if ref is not None]
        done, _ = ray.wait(refs, num_returns=1, timeout=timeout)
        if done and len(refs) > 1:
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        found: list[Ended | Lost] = []
        for ref in done:
            found += self._hear(waiting[ref], ref)
        for host in [host for host in self._ready() if time.monotonic() - host.heard > _SILENCE_SECONDS]:
            found += self._give_up(host, f"its worker {host.worker} did not answer for {_SILENCE_SECONDS:g} s")
        return found

    def _hear(self, host: _Host, ref: ray.ObjectRef[Any]) -> list[Ended | Lost]:
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, SimulatorError):
                raise error.cause from None
            return self._give_up(host, _describe(error))
        except RayError as error:
            return self._give_up(host, _describe(error))
        host.heard = time.monotonic()
        if host.starting is not None:
            host.starting, host.worker = None, answer
            host.pulse = host.actor.collect.remote()
            return []
        assert isinstance(answer, Pulse)
        if answer.error:
            raise SimulatorError(answer.error)
        ended: list[Ended | Lost] = []
        for task, outcomes, seconds in answer.ended:
            host.load -= host.tasks.pop(task)
            if host.alone == task:
                host.alone = None
            ended.append(Ended(task, outcomes, host.worker, seconds))
        if answer.overdue:
            return ended + self._give_up(host, f"its worker {host.worker} did not end it at its deadline")
        host.pulse = host.actor.collect.remote()
        return ended

    def _give_up(self, host: _Host, reason: str) -> list[Ended | Lost]:
        """Ends a host that is gone or out of order; what it had is lost."""
        with contextlib.suppress(RayError):
            ray.kill(host.actor)
        self._hosts.remove(host)
        self._scanned = -math.inf
        node_is_gone = host.node not in {node["NodeID"] for node in _nodes()}
        why = f"the node {host.node[:12]} of its worker is gone" if node_is_gone else f"its worker was lost: {reason}"
        if host.tasks:
            logger.info("%d tasks start again elsewhere: %s", len(host.tasks), why)
        lost: list[Ended | Lost] = []
        free = host.width
        for task, share in host.tasks.items():
            started = share <= free
            free -= share if started else free
            suspect = Blame.PROVEN if host.alone == task else Blame.SUSPECT
            lost.append(Lost(task, started, suspect if started and not node_is_gone else Blame.NONE, why))
        return lost

    def _scan(self) -> None:
        """Starts hosts where there is room for them, now and then."""
        now = time.monotonic()
        if now - self._scanned < _SCAN_SECONDS:
            return
        self._scanned = now
        for host in [h for h in self._hosts if h.starting is not None and now - h.since > _PLACE_SECONDS]:
            if not _placed(host.actor):
                ray.kill(host.actor)
                self._hosts.remove(host)
        available = free_resources()
        for node in _nodes():
            for width in self._widths(node, available.get(node["NodeID"], {})):
                self._hosts.append(self._launch(node["NodeID"], width))

    def _widths(self, node: Mapping[str, Any], available: Mapping[str, float]) -> Iterator[int]:
        """Widths of the hosts that fit on a node beside those that are there."""
        labels = node.get("Labels", {})
        if any(labels.get(name) != value for name, value in self._resources.labels.items()):
            return
        free = dict(available)
        if self._reserved is not None and self._reserved.node == node["NodeID"]:
            # What is reserved may not have been taken yet; whoever asks early must not take it.
            for name, amount in self._reserved.resources.items():
                free[name] = min(free.get(name, 0.0), node["Resources"].get(name, 0.0) - amount)
        need = self._need()
        fits = min((free.get(name, 0.0) / amount for name, amount in need.items()), default=0.0)
        starting = sum(h.width for h in self._hosts if h.node == node["NodeID"] and h.starting is not None)
        left = math.floor(fits + 1e-9) - starting
        gpus = self._resources.gpus
        # Ray has whole GPUs, or a share of one.
        widest = min(_WIDEST, math.floor(1 / gpus + 1e-9)) if 0 < gpus < 1 else _WIDEST
        while left > 0:
            yield min(left, widest)
            left -= widest

    def _need(self) -> dict[str, float]:
        resources = self._resources
        need = {"CPU": resources.cpus, "GPU": resources.gpus, **resources.custom}
        if resources.memory:
            need["memory"] = float(resources.memory)
        return {name: amount for name, amount in need.items() if amount > 0}

    def _launch(self, node: str, width: int) -> _Host:
        resources = self._resources
        actor = Host.options(  # type: ignore[attr-defined]
            num_cpus=resources.cpus * width,
            num_gpus=resources.gpus * width,
            memory=None if resources.memory is None else resources.memory * width,
            resources={name: amount * width for name, amount in resources.custom.items()} or None,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(self._spec, width, resources.memory, resources.cpus, resources.gpus)
        return _Host(actor, node, width, time.monotonic(), actor.ready.remote(), heard=time.monotonic())

    def _nowhere(self) -> str:
        needs = ", ".join(f"{amount:g} {name}" for name, amount in self._need().items())
        labels = "".join(f", label {name}={value}" for name, value in self._resources.labels.items())
        nodes = "; ".join(
            ", ".join(f"{node['Resources'].get(name, 0):g} {name}" for name in self._need()) for node in _nodes()
        )
        return (
            f"a simulation needs {needs}{labels}, but no node of the cluster has that to spare (in all they have: "
            f"{nodes}); lower simulator.resources, or wait until the cluster is free"
        )


def free_resources() -> dict[str, dict[str, float]]:
    """Node to what it has to spare at the moment."""
    free: dict[str, dict[str, float]] = available_resources_per_node()
    return free


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _placed(actor: Any) -> bool:
    """Whether an actor has its resources and lives."""
    return bool(actors(actor._actor_id.hex()).get("State") == "ALIVE")


def _describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
