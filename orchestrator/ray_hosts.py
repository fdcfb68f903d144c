"""Simulations on a Ray cluster: which host is given what, what comes back, and what is lost with a host."""

from __future__ import annotations

__all__ = ["RayHosts"]

import contextlib
import logging
import math
import time
from dataclasses import replace
from itertools import takewhile
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from simulators.errors import ConfigError, SimulatorError
from simulators.outcome import Array
from simulators.simulator import Seeds, SimulatorSpec

from .config_simulator import ResourcesConfig
from .executor import Blame, Ended, Lost
from .fleet import Fleet, Nodes
from .host import Order, Pulse
from .placement import TrainerPlace
from .ray_calls import NoAnswerError, answered
from .ray_cluster import cluster_now, living_nodes
from .ray_host import RayHost

logger = logging.getLogger(__name__)

#: Hosts speak at least every five seconds.
_SILENCE_SECONDS = 60.0
_WARM_SECONDS = 120.0
#: Answers are gathered for this share of a task's length, and at most so many seconds: a turn of this program's loop
#: and a call of Ray cost about as much for one answer as for ten, and slots have their next task at hand meanwhile.
_GATHER_SHARE, _LONGEST_GATHER = 0.3, 0.3
#: Delays of this program's loop against which tasks are kept at hand.
_SHORTEST_DELAY, _LONGEST_DELAY = 0.02, 0.5


class RayHosts:
    """An `Executor` on the Ray cluster that this program has joined.

    Arguments:
        spec: The simulator.
        resources: What one simulation needs.
        place: The trainer's, which is not for simulations.

    Raises:
        ConfigError: No node of the cluster can ever run a simulation, on `warm_up`.
    """

    def __init__(self, spec: SimulatorSpec, resources: ResourcesConfig, place: TrainerPlace | None = None) -> None:
        self._fleet = Fleet(spec, resources, place)
        self._lost: list[Ended | Lost] = []  # that nobody has been told of yet
        self._recalling = False
        self._begin = time.monotonic()
        self._delay = _SHORTEST_DELAY
        self._gather = 0.0
        self._final_slots: int | None = None  # as they were when it was stopped
        self._left = time.monotonic()
        #: Seconds that were spent in listening. While nobody listened, as in a long training, nobody was silent; nor
        #: while this program was suspended.
        self._listened = 0.0

    @property
    def slots(self) -> int:
        """Slots of the hosts that are ready, else of those that are starting; in the end, what they were."""
        self._scan()
        return self._fleet.slots if self._final_slots is None else self._final_slots

    @property
    def widest(self) -> int:
        """Slots of the largest host."""
        return max((host.width for host in self._fleet.hosts), default=1)

    def room(self, seconds: float | None) -> int:
        """How many more tasks of about `seconds` keep all slots busy until the next call."""
        # What waits at a host is not needed elsewhere: no more than ends before this program looks again.
        ahead = 0.0 if seconds is None else min(1.0, 2.0 * (self._delay + self._gather) / max(seconds, 1e-3))
        return sum(
            max(0, host.width + 1 + math.ceil(ahead * host.width) - host.load)
            for host in self._fleet.ready
            if not host.alone
        )

    def warm_up(self, timeout: float) -> bool:
        """Waits up to `timeout` seconds; whether every host that fits on the cluster has started its processes.

        After two minutes those that have are enough; if there is none by then, `ConfigError` says what is missing.
        """
        self._scan()
        if self._fleet.hosts and len(self._fleet.ready) == len(self._fleet.hosts):
            return True
        self._poll(timeout)
        if time.monotonic() - self._begin < _WARM_SECONDS:
            return False
        if not self._fleet.hosts:
            raise ConfigError(self._fleet.nowhere())
        return bool(self._fleet.ready)

    def start(self, task: int, theta: Array, seeds: Seeds, share: int, alone: bool) -> None:
        """Hands a task to the host that has most to spare, of those that are wide enough."""
        self._hand(Order(task, theta, seeds, share), alone)

    def wait(self, timeout: float) -> list[Ended | Lost]:
        """What has come to an end, waiting up to `timeout` seconds for the first."""
        busy = time.monotonic() - self._left
        self._delay = min(_LONGEST_DELAY, max(_SHORTEST_DELAY, 0.9 * self._delay, busy))
        self._scan()
        found = self._poll(timeout)
        self._left = time.monotonic()
        return found

    def make_room(self) -> None:
        """Sees to it that the trainer, which is about to start, gets its place, if need be by ending a host there."""
        with contextlib.suppress(NoAnswerError):
            self._settle(answered(cluster_now), wanted=True)

    def recall(self) -> None:
        """Takes back what has not started; it is reported as lost, and no host is started any more."""
        self._recalling = True
        for host in self._fleet.hosts:
            host.recalls = True
            unheard, host.outbox = host.outbox, []
            self._lost += [self._taken_back(host, order.number) for order in unheard]

    def now(self) -> float:
        """Seconds of a clock that nobody sets back."""
        return time.monotonic()

    def stop(self) -> None:
        """Ends all hosts, with all that they run; none starts any more."""
        self._final_slots = self._fleet.slots if self._final_slots is None else self._final_slots
        self._fleet.disband()
        self._lost.clear()

    def _poll(self, timeout: float) -> list[Ended | Lost]:
        found, self._lost = self._lost, []
        if found:
            return found
        self._balance()
        for host in self._fleet.hosts:
            host.speak()
        waiting = {host.starting or host.pulse: host for host in self._fleet.hosts}
        waiting |= {host.withdrawing: host for host in self._fleet.hosts if host.withdrawing is not None}
        if not waiting:
            time.sleep(timeout)
            return []
        refs = [ref for ref in waiting if ref is not None]
        begin, longest = time.monotonic(), timeout
        done, _ = ray.wait(refs, num_returns=1, timeout=timeout)
        if done and done[0] is waiting[done[0]].pulse:
            if all(host.load >= host.width for host in self._fleet.ready):
                time.sleep(self._gather)
                longest += self._gather
            done, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
        self._listened += min(time.monotonic() - begin, longest)
        for ref in done:
            if waiting[ref] in self._fleet.hosts:
                found += self._hear(waiting[ref], ref)
        for host in [host for host in self._fleet.ready if self._listened - host.heard > _SILENCE_SECONDS]:
            found += self._give_up(host, f"its worker {host.worker} did not answer for {_SILENCE_SECONDS:g} s")
        return found

    def _hear(self, host: RayHost, ref: ray.ObjectRef[Any]) -> list[Ended | Lost]:
        try:
            answer = ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, SimulatorError):
                return self._cannot_start(host, error.cause)
            return self._give_up(host, _describe(error))
        except RayError as error:
            return self._give_up(host, _describe(error))
        host.heard = self._listened
        if ref is host.withdrawing:
            host.withdrawing = None
            if self._recalling:
                return [self._taken_back(host, task) for task in answer]
            self._hand_on(host, answer)
            return []
        if host.starting is not None:
            self._fleet.welcome(host, answer)
            return []
        assert isinstance(answer, Pulse)
        ended: list[Ended | Lost] = []
        host.pulse = None
        # What was on its way when the host was asked has arrived by now.
        host.recalls = self._recalling
        for task, outcomes, seconds in answer.ended:
            host.remove(task)
            ended.append(Ended(task, outcomes, host.worker, seconds))
            self._gather += 0.1 * (min(_LONGEST_GATHER, _GATHER_SHARE * seconds) - self._gather)
        if answer.error:
            # It had started there: this is no fault of the simulator's.
            return ended + self._give_up(host, f"its worker {host.worker} is out of order: {answer.error}")
        if answer.overdue:
            return ended + self._give_up(host, f"its worker {host.worker} did not end it at its deadline")
        return ended

    def _cannot_start(self, host: RayHost, error: SimulatorError) -> list[Ended | Lost]:
        """Sets a host aside where the simulator cannot be imported; raises if it can be nowhere, as far as is known."""
        lost = self._give_up(host, str(error))
        if not self._fleet.is_hopeless:
            return lost
        names = [node["NodeManagerHostname"] for node in answered(living_nodes) if node["NodeID"] == host.node]
        where = f"on {names[0]}" if names else "on a node that is gone"
        raise SimulatorError(
            f"the simulator cannot be started {where}, nor has it been on another node: {error}; install there what it "
            "needs, or mend it, and run again"
        ) from None

    def _balance(self) -> None:
        """Takes back what waits at one host while slots of another are idle."""
        if self._recalling:
            for host in self._fleet.ready:
                if host.recalls and host.withdrawing is None:
                    host.recalls = False
                    host.withdrawing = host.actor.withdraw.remote(len(host.tasks))
            return
        hosts = [host for host in self._fleet.ready if not host.alone]
        idle = sum(host.width - host.load for host in hosts if host.load < host.width)
        widest = max((host.width for host in hosts if host.load < host.width), default=0)
        for host in hosts:
            excess = min(idle, host.load - host.width)
            if excess <= 0 or host.withdrawing is not None or host.pulse is None:
                continue
            # What is too wide for the idle hosts would only come back, again and again.
            last = reversed(list(host.tasks.values())[-excess:])
            count = sum(1 for _ in takewhile(lambda order: order.share <= widest, last))
            if count:
                host.withdrawing = host.actor.withdraw.remote(count)
                idle -= count

    def _taken_back(self, host: RayHost, task: int) -> Lost:
        host.remove(task)
        return Lost(task, False, Blame.NONE, "it was taken back before it started")

    def _hand_on(self, host: RayHost, tasks: list[int]) -> None:
        for task in tasks:
            alone = task in host.alone
            self._hand(host.remove(task), alone)

    def _hand(self, order: Order, alone: bool) -> None:
        hosts = self._fleet.ready
        assert hosts, "room() said that there is room"
        # A host never starts what is wider than itself.
        share = min(order.share, max(host.width for host in hosts))
        wide = [host for host in hosts if host.width >= share]
        # If all of them are kept for tasks that run alone, it waits behind one.
        candidates = [host for host in wide if not host.alone] or wide
        host = max(candidates, key=lambda h: ((h.width - h.load) / h.width, -h.load))
        if alone:
            host.alone.add(order.number)
            share = host.width
        host.add(replace(order, share=share))

    def _give_up(self, host: RayHost, reason: str, sound: bool = False) -> list[Ended | Lost]:
        """Ends a host that is gone or out of order, or `sound` but in the way; what it had is lost."""
        node_is_gone = self._fleet.end(host, reason, sound)
        why = f"the node {host.node[:12]} of its worker is gone" if node_is_gone else f"its worker was lost: {reason}"
        if host.tasks:
            logger.info("%d tasks start again elsewhere: %s", len(host.tasks), why)
        lost: list[Ended | Lost] = []
        free = host.width
        unheard = {order.number for order in host.outbox}
        for task, order in host.tasks.items():
            started = order.share <= free and task not in unheard
            free -= order.share if started else free
            suspect = Blame.PROVEN if task in host.alone else Blame.SUSPECT
            blameless = node_is_gone or sound or not started
            lost.append(Lost(task, started, Blame.NONE if blameless else suspect, why))
        return lost

    def _scan(self) -> None:
        """Looks now and then whether hosts must go, and where there is room for others."""
        if self._recalling or self._final_slots is not None:
            return
        found = self._fleet.look()
        if found is not None:
            self._settle(found)
            self._fleet.grow(found, self._listened)

    def _settle(self, found: Nodes, wanted: bool = False) -> None:
        for host in self._fleet.in_the_way(found, wanted):
            self._lost += self._give_up(host, "it made room for the trainer", sound=True)


def _describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return lines[-1]  # of the traceback: what was raised
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
