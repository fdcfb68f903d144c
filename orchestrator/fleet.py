"""Which hosts a campaign has: as many as fit on the nodes beside the trainer, more and fewer as nodes come and go."""

from __future__ import annotations

__all__ = ["Fleet"]

import contextlib
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from simulators.simulator import SimulatorSpec

from .config_simulator import ResourcesConfig
from .fitting import fitting_widths, needs
from .host import Host
from .nowhere import FailedStarts, nowhere
from .placement import Reservation, TrainerPlace
from .ray_calls import NoAnswerError, answered
from .ray_cluster import actor_state, cluster_now, end_actors, living_nodes
from .ray_host import RayHost

_SCAN_SECONDS = 2.0
#: A host that could not be placed by then looks for another node: its resources went to somebody else.
_PLACE_SECONDS = 30.0

#: Nodes, and what is free on each.
Nodes = tuple[Sequence[Mapping[str, Any]], Mapping[str, Mapping[str, float]]]


class Fleet:
    """See the module. It knows nothing of tasks.

    Arguments:
        spec: The simulator.
        resources: What one simulation needs.
        place: The trainer's, which is not for simulations.

    Attributes:
        hosts: Those that there are, ready or starting.
    """

    def __init__(self, spec: SimulatorSpec, resources: ResourcesConfig, place: TrainerPlace | None) -> None:
        self._resources, self._place = resources, place
        self._spec = ray.put(spec)
        self.hosts: list[RayHost] = []
        self._failed = FailedStarts()
        self._has_started = False
        self._looked = -math.inf

    @property
    def ready(self) -> list[RayHost]:
        """Hosts that can be given tasks."""
        return [host for host in self.hosts if host.starting is None]

    @property
    def slots(self) -> int:
        """Slots of those that are ready, else of those that are starting."""
        ready = sum(host.width for host in self.ready)
        return max(1, ready or sum(host.width for host in self.hosts))

    def look(self) -> Nodes | None:
        """The cluster as it is now; None if that was asked a moment ago, or it does not answer.

        Hosts that never found their place are no more.
        """
        now = time.monotonic()
        if now - self._looked < _SCAN_SECONDS:
            return None
        try:
            for host in [h for h in self.hosts if h.starting is not None and now - h.since > _PLACE_SECONDS]:
                if answered(lambda host=host: actor_state(host.actor)).get("State") != "ALIVE":  # type: ignore[misc]
                    end_actors([host.actor])
                    self.hosts.remove(host)
            found = answered(cluster_now)
        except NoAnswerError:
            self._looked = time.monotonic()
            return None
        self._looked = now
        return found

    def in_the_way(self, found: Nodes, wanted: bool = False) -> list[RayHost]:
        """Looks after the trainer's place; the hosts that must go for it, if it is `wanted` or waited for."""
        if self._place is None:
            return []
        nodes, available = found
        widths = Counter[str]()
        for host in self.hosts:
            widths[host.node] += host.width
        need = needs(self._resources)
        held = {node: {name: width * amount for name, amount in need.items()} for node, width in widths.items()}
        self._place.look(nodes, available, held)
        reserved = self._place.reservation
        if reserved is None or not (wanted or self._place.waits):
            return []
        [total] = [node["Resources"] for node in nodes if node["NodeID"] == reserved.node] or [{}]
        narrowest_first = sorted(self.hosts, key=lambda host: host.width)
        going = []
        for host in [host for host in narrowest_first if host.node == reserved.node]:
            left = {name: total.get(name, 0.0) - widths[reserved.node] * need.get(name, 0.0) for name in need}
            if all(left[name] >= amount - 1e-9 for name, amount in reserved.resources.items() if name in need):
                break
            widths[reserved.node] -= host.width
            going.append(host)
        return going

    def grow(self, found: Nodes, heard: float) -> None:
        """Starts hosts where there is room for them.

        Arguments:
            found: What `look` saw.
            heard: As in `RayHost`.
        """
        nodes, available = found
        for node in nodes:
            name = node["NodeID"]
            if self._failed.pausing(name, time.monotonic()):
                continue
            there = [host for host in self.hosts if host.node == name]
            ours, starting = sum(h.width for h in there), sum(h.width for h in there if h.starting is not None)
            for width in fitting_widths(self._resources, node, available.get(name, {}), self._reserved, ours, starting):
                self.hosts.append(self._launch(name, width, heard))

    def welcome(self, host: RayHost, worker: str) -> None:
        """A host is ready; it calls itself `worker`."""
        host.starting, host.worker = None, worker
        self._failed.forget(host.node)
        self._has_started = True

    def end(self, host: RayHost, reason: str, sound: bool = False) -> bool:
        """Ends a host that is gone or out of order, or `sound` but in the way; whether its whole node is gone."""
        end_actors([host.actor])
        self.hosts.remove(host)
        self._looked = -math.inf
        nodes: dict[str, dict[str, Any]] = {}
        # Where Ray does not answer, more is gone than a host: nobody is to blame.
        with contextlib.suppress(NoAnswerError):
            nodes = {node["NodeID"]: node for node in answered(living_nodes)}
        node_is_gone = host.node not in nodes
        if host.starting is not None and not node_is_gone and not sound:
            self._failed.add(host.node, nodes[host.node]["NodeManagerHostname"], reason, time.monotonic())
        return node_is_gone

    @property
    def is_hopeless(self) -> bool:
        """Whether the simulator started nowhere, as far as is known, and may start nowhere else.

        Where it has started once, or may yet, the node is to blame: it lacks a library, say.
        """
        return not self._has_started and all(
            host.node in self._failed for host in self.hosts if host.starting is not None
        )

    def nowhere(self) -> str:
        """Why there is no host."""
        return str(self._failed) or nowhere(
            needs(self._resources), self._resources.labels, answered(living_nodes), self._reserved
        )

    def disband(self) -> None:
        """Ends all hosts, with all that they run."""
        end_actors([host.actor for host in self.hosts])
        self.hosts.clear()

    @property
    def _reserved(self) -> Reservation | None:
        return None if self._place is None else self._place.reservation

    def _launch(self, node: str, width: int, heard: float) -> RayHost:
        resources = self._resources
        actor = Host.options(  # type: ignore[attr-defined]
            num_cpus=resources.cpus * width,
            num_gpus=resources.gpus * width,
            memory=None if resources.memory is None else resources.memory * width,
            resources={name: amount * width for name, amount in resources.custom.items()} or None,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote(self._spec, width, resources.memory, resources.cpus, resources.gpus)
        return RayHost(actor, node, width, time.monotonic(), actor.ready.remote(), heard=heard)
