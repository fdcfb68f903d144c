"""The pool: what is simulated when; always enough in flight, every simulation accounted for exactly once."""

from __future__ import annotations

__all__ = ["SimulationPool"]

import itertools
import math
import time
from collections import deque
from dataclasses import dataclass, replace

import numpy as np

from simulators.outcome import Outcomes, Status

from .executor import Blame, Ended, Executor, Lost
from .proposal import Finished, Integers, Proposals

#: Cheap simulations are grouped into tasks of about this length, so that the cost a task does not matter.
_TASK_SECONDS = 0.5
_MAX_BATCH = 1 << 16
#: From one task to the next: what ran fast once may not always.
_GROWTH = 8
#: A task of parameters and results of about this size travels well.
_MAX_NUMBERS = 1 << 21
#: Beyond its retries, how often a simulation starts again after losses that were not its fault.
_MAX_LOSSES = 20


@dataclass(frozen=True, eq=False)
class _Task:
    """Rows that travel together.

    Attributes:
        proposals: What is asked.
        attempts: `(n,)` how often each was started before.
        failures: How often the rows brought their worker down for certain.
        share: Slots that it occupies: more than one for more memory.
        alone: Whether it must run alone, being suspected of bringing workers down.
    """

    proposals: Proposals
    attempts: Integers
    failures: int = 0
    share: int = 1
    alone: bool = False

    def single(self, row: int, **changes: object) -> _Task:
        """One of its rows, to be tried again."""
        alone = replace(self, proposals=self.proposals.take(slice(row, row + 1)), attempts=self.attempts[row : row + 1])
        return replace(alone, **changes)  # type: ignore[arg-type]


class SimulationPool:
    """Runs proposals on an executor.

    Arguments:
        executor: What runs them.
        retries: How often a simulation that crashed, or brought its worker down, is tried again.
        memory_growth: Factor by which a simulation that ran out of memory gets more, 1 for not trying it again.
    """

    def __init__(self, executor: Executor, retries: int, memory_growth: float = 1.0) -> None:
        self.executor, self.retries, self.memory_growth = executor, retries, memory_growth
        self._fresh: deque[Proposals] = deque()
        self._num_fresh = 0
        self._again: deque[_Task] = deque()
        self._running: dict[int, _Task] = {}
        self._num_running = 0
        self._numbers = itertools.count()
        self._pace = _Pace()

    @property
    def slots(self) -> int:
        """Simulations that can run at once, as things are now."""
        return self.executor.slots

    @property
    def num_pending(self) -> int:
        """Number of simulations submitted that have no outcome yet."""
        return self._num_fresh + sum(len(task.proposals) for task in self._again) + self._num_running

    @property
    def pending(self) -> Proposals:
        """Everything submitted that has no outcome yet."""
        tasks = itertools.chain(self._running.values(), self._again)
        return Proposals.concatenate([*(task.proposals for task in tasks), *self._fresh])

    @property
    def running(self) -> int:
        """Tasks handed over and not yet back."""
        return len(self._running)

    @property
    def appetite(self) -> int:
        """How many more proposals are wanted: enough for what can start, and some in reserve, but not one by one."""
        size = self._batch_size()
        queued = self._num_fresh + sum(len(task.proposals) for task in self._again)
        wanted = self._room(size) * size
        reserve = (self.slots // 2 + 1) * size
        return max(0, wanted + reserve - queued) if queued < wanted + reserve / 2 else 0

    @property
    def mean_seconds(self) -> float | None:
        """Recent mean length of a simulation, None before the first."""
        return self._pace.seconds if self._pace.known else None

    def submit(self, proposals: Proposals) -> None:
        """Accepts proposals; each will come back from `poll` exactly once."""
        if len(proposals):
            self._fresh.append(proposals)
            self._num_fresh += len(proposals)
        self._start()

    def poll(self, timeout: float, refill: bool = True) -> Finished:
        """Finished simulations, waiting up to `timeout` seconds for the first.

        Arguments:
            timeout: Seconds.
            refill: Whether to start waiting proposals on slots that became free.

        Raises:
            SimulatorError: The simulator cannot be imported on any worker.
        """
        finished: list[Finished] = []
        for end in self.executor.wait(timeout):
            task = self._running.pop(end.task)
            self._num_running -= len(task.proposals)
            finished += self._end(task, end) if isinstance(end, Ended) else self._lose(task, end)
        if refill:
            self._start()
        return Finished.concatenate(finished) if finished else Finished.none()

    def withdraw(self, since: int = 0) -> int:
        """Takes back what has not been handed to the executor yet; their number. Nothing of it will be reported.

        Arguments:
            since: Proposals with lower ids stay.
        """
        before = self._num_fresh
        kept = [part.take(part.id < since) for part in self._fresh]
        self._fresh = deque(part for part in kept if len(part))
        self._num_fresh = sum(map(len, self._fresh))
        return before - self._num_fresh

    def recall(self) -> None:
        """Lets nothing more start; what runs goes on. Poll without refilling until nothing is `running`."""
        self.executor.recall()

    def cancel(self) -> None:
        """Gives up everything pending; nothing of it will be reported."""
        self._fresh.clear()
        self._again.clear()
        self._running.clear()
        self._num_fresh = self._num_running = 0
        self.executor.stop()

    def _start(self) -> None:
        size = self._batch_size()
        room = self._room(size)
        while room > 0 and (self._again or self._fresh):
            task = self._again.popleft() if self._again else self._next(size)
            number = next(self._numbers)
            self._running[number] = task
            self._num_running += len(task.proposals)
            self.executor.start(number, task.proposals.theta, task.proposals.seed, task.share, task.alone)
            room = self._room(size) if task.alone else room - 1

    def _room(self, size: int) -> int:
        return self.executor.room(self._pace.seconds * size if self._pace.known else None)

    def _next(self, size: int) -> _Task:
        """The next fresh proposals, `size` of them if there are as many."""
        parts: list[Proposals] = []
        while self._fresh and size > 0:
            part = self._fresh.popleft()
            if len(part) > size:
                self._fresh.appendleft(part.take(slice(size, None)))
                part = part.take(slice(0, size))
            parts.append(part)
            size -= len(part)
        proposals = Proposals.concatenate(parts)
        self._num_fresh -= len(proposals)
        return _Task(proposals, np.zeros(len(proposals), dtype=np.int64))

    def _end(self, task: _Task, end: Ended) -> list[Finished]:
        self._pace.learn(len(task.proposals), end)
        attempts = task.attempts + 1
        again = end.outcomes.has(Status.CRASHED) & (attempts <= self.retries)
        share = min(math.ceil(task.share * self.memory_growth), self.executor.widest)
        if share > task.share:
            again |= end.outcomes.has(Status.OUT_OF_MEMORY)
        more = end.outcomes.has(Status.OUT_OF_MEMORY)
        task = replace(task, attempts=attempts)
        for row in np.flatnonzero(again).tolist():
            self._again.append(task.single(row, share=share if more[row] else task.share))
        return self._report(task, end.outcomes, end.worker, ~again)

    def _lose(self, task: _Task, lost: Lost) -> list[Finished]:
        if lost.blame is Blame.PROVEN:
            task = replace(task, failures=task.failures + 1)
        task = replace(task, attempts=task.attempts + lost.started, alone=task.alone or lost.blame is Blame.SUSPECT)
        n = len(task.proposals)
        if lost.blame is Blame.PROVEN and n > 1:
            # One of its rows is to blame: each is tried alone.
            self._again.extend(task.single(row, failures=0) for row in range(n))
            return []
        if task.failures > self.retries or task.attempts.max() > self.retries + _MAX_LOSSES:
            reason = f"{lost.reason}, {task.failures or int(task.attempts.max())} times"
            outcomes = Outcomes.failed(n, Status.WORKER_LOST, reason, time.time(), 0.0)
            return self._report(task, outcomes, "", np.ones(n, dtype=bool))
        self._again.append(task)
        return []

    def _report(self, task: _Task, outcomes: Outcomes, worker: str, rows: np.ndarray) -> list[Finished]:
        finished = Finished(task.proposals, outcomes, task.attempts, np.full(len(rows), worker, dtype=object))
        return [finished if rows.all() else finished.take(rows)]

    def _batch_size(self) -> int:
        # What ends first is fast: not before two for each slot have ended do they speak for the others.
        if self._pace.tasks < 2 * self.slots:
            return 1
        width = self._pace.numbers + (self._fresh[0].theta.shape[1] if self._fresh else 1)
        limit = min(_MAX_BATCH, _MAX_NUMBERS // width, _GROWTH * self._pace.largest)
        return max(1, min(limit, int(_TASK_SECONDS / self._pace.slow)))


class _Pace:
    """How long simulations take, and how much they return, learned from tasks as they end.

    Attributes:
        tasks: How many have ended.
        numbers: Length of a result.
        largest: Rows of the largest task so far.
    """

    def __init__(self) -> None:
        self.tasks = 0
        self._rows = self._sum = self._squares = 0.0
        self.numbers = self.largest = 1

    @property
    def known(self) -> bool:
        """Whether a simulation has ended."""
        return self.tasks > 0

    @property
    def seconds(self) -> float:
        """Recent mean length of a simulation, what it costs around it included; 0 before the first has ended."""
        return self._sum / max(self._rows, 1e-12)

    @property
    def slow(self) -> float:
        """A length that most simulations stay below; infinite before the first has ended."""
        if not self.tasks:
            return math.inf
        variance = self._squares / self._rows - self.seconds**2
        return max(1e-7, self.seconds + math.sqrt(max(0.0, variance)))

    def learn(self, n: int, end: Ended) -> None:
        """From a task of `n` simulations."""
        self.tasks += 1
        # The very first includes what a simulator does only once.
        kept = 0.0 if self.tasks == 2 else 0.95
        single = end.outcomes.seconds
        cost = single + max(0.0, end.seconds - float(single.sum())) / n
        self._rows = kept * self._rows + n
        self._sum = kept * self._sum + float(cost.sum())
        self._squares = kept * self._squares + float(np.square(cost).sum())
        self.numbers = max(self.numbers, int(end.outcomes.lengths.max(initial=1)))
        self.largest = max(self.largest, n)
