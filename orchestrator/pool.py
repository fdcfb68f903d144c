"""The pool: simulations as Ray tasks, always enough in flight, every one accounted for exactly once."""

from __future__ import annotations

__all__ = ["SimulationPool"]

import math
import os
import socket
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from simulators.errors import SimulatorError
from simulators.isolated import IsolatedSimulator
from simulators.outcome import Outcome, Status
from simulators.simulator import SimulatorSpec

from .config import ResourcesConfig
from .proposal import Finished, Proposal

#: Cheap simulations are grouped into tasks of about this length, so that Ray's cost a task does not matter.
_TASK_SECONDS = 0.5
_MAX_BATCH = 4096
_RETRIED = (Status.CRASHED, Status.WORKER_LOST)

#: One simulator process for each kind of simulator that this worker has run.
_running: dict[SimulatorSpec, IsolatedSimulator] = {}


@ray.remote(max_retries=0)
def _simulate(spec: SimulatorSpec, theta: np.ndarray, seeds: np.ndarray) -> tuple[str, list[Outcome]]:
    if spec not in _running:
        _running[spec] = IsolatedSimulator(spec)
    worker = f"{socket.gethostname()}:{os.getpid()}"
    return worker, _running[spec].run(theta, seeds)


@dataclass
class _Attempt:
    proposal: Proposal
    number: int = 1


class SimulationPool:
    """Runs proposals on the cluster.

    Arguments:
        spec: The simulator.
        resources: What one simulation needs.
        retries: How often a crashed simulation is tried again.
        reserved_cpus: CPUs of the cluster that are not for simulations.
    """

    def __init__(
        self, spec: SimulatorSpec, resources: ResourcesConfig, retries: int, reserved_cpus: float = 0.0
    ) -> None:
        self.resources, self.retries, self.reserved_cpus = resources, retries, reserved_cpus
        self._spec = ray.put(spec)
        self._task = _simulate.options(
            num_cpus=resources.cpus,
            num_gpus=resources.gpus,
            memory=resources.memory,
            resources=resources.custom or None,
            scheduling_strategy="SPREAD",
        )
        self._waiting: deque[_Attempt] = deque()
        self._running: dict[ray.ObjectRef[Any], list[_Attempt]] = {}
        self._seconds: float | None = None
        self._slots, self._slots_read = 1, -math.inf

    @property
    def slots(self) -> int:
        """Simulations that the cluster can run at once, as it is now."""
        if time.monotonic() - self._slots_read > 2.0:
            total = ray.cluster_resources()
            need = {"CPU": self.resources.cpus, "GPU": self.resources.gpus, **self.resources.custom}
            if self.resources.memory:
                need["memory"] = float(self.resources.memory)
            total["CPU"] = total.get("CPU", 0.0) - self.reserved_cpus
            room = [total.get(name, 0.0) / amount for name, amount in need.items() if amount > 0]
            self._slots, self._slots_read = max(1, math.floor(min(room) + 1e-9)), time.monotonic()
        return self._slots

    @property
    def pending(self) -> list[Proposal]:
        """Everything submitted that has no outcome yet."""
        running = [attempt.proposal for batch in self._running.values() for attempt in batch]
        return [attempt.proposal for attempt in self._waiting] + running

    @property
    def appetite(self) -> int:
        """How many more proposals keep every slot busy and one task ahead for each."""
        queued = len(self._waiting) + sum(map(len, self._running.values()))
        return max(0, 2 * self.slots * self._batch_size() - queued)

    @property
    def mean_seconds(self) -> float | None:
        """Recent mean length of a simulation, None before the first."""
        return self._seconds

    def submit(self, proposals: list[Proposal]) -> None:
        """Accepts proposals; each will come back from `poll` exactly once."""
        self._waiting.extend(_Attempt(p) for p in proposals)
        self._start()

    @property
    def running(self) -> int:
        """Tasks handed to Ray and not yet back."""
        return len(self._running)

    def poll(self, timeout: float, refill: bool = True) -> list[Finished]:
        """Finished simulations, waiting up to `timeout` seconds for the first.

        Arguments:
            timeout: Seconds.
            refill: Whether to start waiting proposals on slots that became free.

        Raises:
            SimulatorError: The simulator cannot be imported on a worker.
        """
        if not self._running:
            if timeout > 0 and not self._waiting:
                time.sleep(timeout)
            return []
        done, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
        if done:
            done, _ = ray.wait(list(self._running), num_returns=len(self._running), timeout=0)
        finished: list[Finished] = []
        for ref in done:
            finished += self._collect(self._running.pop(ref), ref)
        if refill:
            self._start()
        return finished

    def cancel(self) -> None:
        """Gives up everything pending; nothing of it will be reported."""
        self._waiting.clear()
        for ref in self._running:
            ray.cancel(ref, force=True)
        self._running.clear()

    def _start(self) -> None:
        # Two tasks a slot: while one runs, Ray has the next at hand.
        while self._waiting and len(self._running) < 2 * self.slots:
            size = 1 if self._waiting[0].number > 1 else self._batch_size()
            batch = [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]
            theta = np.stack([attempt.proposal.theta for attempt in batch])
            seeds = np.array([attempt.proposal.seed for attempt in batch], dtype=np.int64)
            self._running[self._task.remote(self._spec, theta, seeds)] = batch

    def _collect(self, batch: list[_Attempt], ref: ray.ObjectRef[Any]) -> list[Finished]:
        try:
            worker, outcomes = ray.get(ref)
        except RayTaskError as error:
            if isinstance(error.cause, SimulatorError):
                raise error.cause from None
            worker, outcomes = "", _lost(batch, error)
        except RayError as error:
            worker, outcomes = "", _lost(batch, error)
        finished = []
        for attempt, outcome in zip(batch, outcomes, strict=True):
            if outcome.status in _RETRIED and attempt.number <= self.retries:
                self._waiting.append(_Attempt(attempt.proposal, attempt.number + 1))
                continue
            self._learn(outcome)
            finished.append(Finished(attempt.proposal, outcome, attempt.number, worker))
        return finished

    def _learn(self, outcome: Outcome) -> None:
        weight = 0.05 if self._seconds is not None else 1.0
        self._seconds = (1 - weight) * (self._seconds or 0.0) + weight * outcome.seconds

    def _batch_size(self) -> int:
        if self._seconds is None:
            return 1
        return max(1, min(_MAX_BATCH, int(_TASK_SECONDS / max(self._seconds, 1e-6))))


def _lost(batch: list[_Attempt], error: Any) -> list[Outcome]:
    reason = f"the worker was lost: {type(error).__name__}"
    return [Outcome(Status.WORKER_LOST, None, reason, time.time(), 0.0) for _ in batch]
