"""A host: one Ray actor that runs the simulations of several slots of its node, each in a process of its own.

A Ray task or actor a slot would cost a Ray worker a slot (about a third of a second each). A host keeps the next tasks
of all its slots at hand, so that a slot is idle for a fraction of a millisecond only.
"""

from __future__ import annotations

__all__ = ["Host", "Order", "Pulse"]

import os
import queue
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass

import ray

from simulators.errors import SimulatorError, TemperflowError
from simulators.isolated import IsolatedSimulator
from simulators.memory import used_fraction
from simulators.outcome import Array, Outcomes
from simulators.simulator import Seeds, SimulatorSpec

_PULSE_SECONDS = 5.0
_LOOK_SECONDS = 0.5
#: Just before Ray (at 0.95) would kill whole workers, the largest simulation is ended.
_MEMORY_FRACTION = 0.93
#: Beyond its deadline and the grace, a task is late by our own fault.
_OVERDUE_SECONDS = 60.0


@dataclass(frozen=True, eq=False)
class Pulse:
    """What a host has to tell.

    Attributes:
        ended: Task, its outcomes, and how long it took.
        error: Why the simulator, which had started here, cannot be started any more, or empty: the host is of no use.
        overdue: Whether a deadline has not been kept: the host is out of order.
    """

    ended: list[tuple[int, Outcomes, float]]
    error: str
    overdue: bool


@dataclass(frozen=True, eq=False)
class Order:
    """A task for a host.

    Attributes:
        number: Its number.
        theta: `(n, d)`.
        seeds: `(n,)`.
        share: Slots that it occupies.
    """

    number: int
    theta: Array
    seeds: Seeds
    share: int


# Calls of a group keep their order; `collect` must not hold up `submit`.
@ray.remote(max_restarts=0, concurrency_groups={"collect": 1, "ready": 1})  # type: ignore[call-overload]
class Host:
    """See the module.

    Arguments:
        spec: The simulator.
        slots: Simulations at once.
        memory: Bytes that a simulation may occupy for each slot that it has, or None.
        cpus, gpus: Cores and GPUs of a slot.
    """

    def __init__(self, spec: SimulatorSpec, slots: int, memory: int | None, cpus: float, gpus: float) -> None:
        self._spec, self._memory, self._slots = spec, memory, slots
        self._waiting: deque[Order] = deque()
        self._free, self._changed = slots, threading.Condition()
        self._running: dict[int, tuple[Order, float, IsolatedSimulator]] = {}
        self._ended: queue.SimpleQueue[tuple[int, Outcomes, float]] = queue.SimpleQueue()
        self._error = ""
        self._started = threading.Semaphore(0)
        visible = [str(gpu) for gpu in ray.get_gpu_ids()]
        self._simulators = [IsolatedSimulator(spec, _environment(cpus, gpus, visible, slot)) for slot in range(slots)]
        for simulator in self._simulators:
            threading.Thread(target=self._serve, args=(simulator,), daemon=True).start()
        self._raylet = os.getppid()
        threading.Thread(target=self._watch, daemon=True).start()

    @ray.method(concurrency_group="ready")
    def ready(self) -> str:
        """Waits until every slot has its process and the simulator imported; `host:pid`.

        Raises:
            SimulatorError: It cannot be imported.
        """
        for _ in range(self._slots):
            self._started.acquire()
        if self._error:
            raise SimulatorError(self._error)
        return f"{socket.gethostname()}:{os.getpid()}"

    def submit(self, orders: list[Order]) -> None:
        """Accepts tasks; each starts as soon as its slots are free, in the order of coming."""
        with self._changed:
            self._waiting.extend(orders)
            self._changed.notify_all()

    def withdraw(self, count: int) -> list[int]:
        """Gives back up to `count` tasks that have not started, the last ones; their numbers."""
        with self._changed:
            return [self._waiting.pop().number for _ in range(min(count, len(self._waiting)))]

    @ray.method(concurrency_group="collect")
    def collect(self, orders: list[Order]) -> Pulse:
        """Accepts tasks, then tells what has ended since the last call; waits for the first, but not for ever."""
        if orders:
            self.submit(orders)
        ended: list[tuple[int, Outcomes, float]] = []
        try:
            ended.append(self._ended.get(timeout=_PULSE_SECONDS))
            while True:
                ended.append(self._ended.get_nowait())
        except queue.Empty:
            return Pulse(ended, self._error, self._overdue())

    def _serve(self, simulator: IsolatedSimulator) -> None:
        """The life of a slot."""
        try:
            simulator.start()
        except TemperflowError as error:
            self._error = str(error)
        except Exception as error:
            self._error = f"starting the simulator's process failed with {type(error).__name__}: {error}"
        self._started.release()
        while not self._error:
            task = self._next(simulator)
            begin = time.monotonic()
            memory = None if self._memory is None else self._memory * task.share
            try:
                outcomes = simulator.run(task.theta, task.seeds, memory)
            except Exception as error:
                # A slot that died in silence would leave its task without an end.
                self._error = str(error) or repr(error)
                return
            with self._changed:
                del self._running[task.number]
                self._free += task.share
                self._changed.notify_all()
            self._ended.put((task.number, outcomes, time.monotonic() - begin))

    def _next(self, simulator: IsolatedSimulator) -> Order:
        with self._changed:
            while not self._waiting or self._waiting[0].share > self._free:
                self._changed.wait()
            task = self._waiting.popleft()
            self._free -= task.share
            self._running[task.number] = (task, time.monotonic(), simulator)
            return task

    def _overdue(self) -> bool:
        if self._spec.timeout is None:
            return False
        late = self._spec.timeout + self._spec.grace
        with self._changed:
            # A process that is started anew, however slow, is not late: what it shall simulate has not begun.
            return any(
                time.monotonic() - max(since, simulator.ready_since) > late * len(task.theta) + _OVERDUE_SECONDS
                for task, since, simulator in self._running.values()
            )

    def _watch(self) -> None:
        while not self._error:
            time.sleep(_LOOK_SECONDS)
            if os.getppid() != self._raylet:
                os._exit(1)  # Ray on this node is gone, and nobody will ask for results; Ray itself is slow to notice.
            used = used_fraction()
            if used > _MEMORY_FRACTION:
                largest = max(self._simulators, key=lambda simulator: simulator.resident)
                largest.end_for_memory(f"was ended as the largest when {100 * used:.0f} % of the memory were in use")


def _environment(cpus: float, gpus: float, visible: list[str], slot: int) -> dict[str, str]:
    """What a simulation is told of its share: Ray speaks of the whole host."""
    environment = {"OMP_NUM_THREADS": str(max(1, int(cpus)))}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = _devices(visible, slot, gpus)
    return environment


def _devices(visible: list[str], slot: int, gpus: float) -> str:
    """The GPUs of a slot among those of its host, for `CUDA_VISIBLE_DEVICES`."""
    first = int(slot * gpus + 1e-9)
    return ",".join(visible[first : first + max(1, round(gpus))]) or ",".join(visible)
