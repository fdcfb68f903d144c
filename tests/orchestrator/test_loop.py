"""The loop with workers and a trainer whose time is only counted: what starts, what is kept, and when it ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learners import whiten
from orchestrator.acquisition import LargestVariance
from orchestrator.config import AcquisitionConfig
from orchestrator.executor import Ended
from orchestrator.journal import ProposalJournal
from orchestrator.loop import SimulationLoop
from orchestrator.pool import SimulationPool
from orchestrator.proposal import ProposalKind, Proposals
from orchestrator.proposer import Proposer
from orchestrator.store import SimulationStore
from simulators.outcome import Outcome, Outcomes, Status

HOUR = 3600.0


class Workers:
    """An executor of `slots` workers whose simulations take `seconds`, by turns a little more and less, and no time."""

    widest = 1

    def __init__(self, slots: int, seconds: float) -> None:
        self.slots, self.seconds, self.time = slots, seconds, 0.0
        self._waiting: dict[int, Any] = {}
        self._running: dict[int, tuple[float, float, Any]] = {}

    def room(self, _seconds: float | None) -> int:
        return max(0, self.slots + 1 - len(self._waiting) - len(self._running))

    def start(self, task: int, theta: np.ndarray, *_: object) -> None:
        self._waiting[task] = theta
        self._begin()

    def _begin(self) -> None:
        while self._waiting and len(self._running) < self.slots:
            task = next(iter(self._waiting))
            seconds = self.seconds * (0.9 + 0.2 * (task % 11) / 10)
            self._running[task] = self.time + seconds, seconds, self._waiting.pop(task)

    def wait(self, _timeout: float) -> list[Ended]:
        if not self._running:
            return []
        task = min(self._running, key=lambda t: self._running[t])
        self.time, seconds, theta = self._running.pop(task)
        self._begin()
        outcomes = Outcomes.from_rows([Outcome(Status.OK, row, "", self.time, seconds) for row in theta])
        return [Ended(task, outcomes, "worker", seconds * len(theta))]

    def now(self) -> float:
        return self.time

    def stop(self) -> None:
        pass


class NoTrainer:
    """One that is never asked."""

    busy, last_seconds = False, None

    def poll(self, _timeout: float = 0.0) -> None:
        return None

    def add(self, *_: object) -> None:
        pass


class Loops:
    """Makes loops in one folder, as processes would that follow one another."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[SimulationLoop] = []

    def __call__(
        self,
        workers: Workers,
        config: AcquisitionConfig,
        trainer: Any = None,
        next_id: int = 0,
        until: float | None = None,
    ) -> SimulationLoop:
        prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
        proposer = Proposer(prior, whiten(prior), config, 0, next_id, LargestVariance(), targeted=True)
        journal = ProposalJournal(self.folder / "journal")
        journal.rotate(journal.read())
        pool = SimulationPool(workers, retries=1)  # type: ignore[arg-type]
        store, trainer, stopping = SimulationStore(self.folder / "store"), trainer or NoTrainer(), threading.Event()
        loop = SimulationLoop(
            pool,
            store,
            journal,
            trainer,
            proposer,
            config,
            dim_x=None,
            dim_observation=None,
            until=until,
            stop_wait=0.0,
            stopping=stopping,
            on_tick=lambda: None,
            on_snapshot=lambda _: None,
        )
        self.made.append(loop)
        return loop


@pytest.fixture
def loops(tmp_path: Path) -> Iterator[Loops]:
    made = Loops(tmp_path)
    yield made
    for loop in made.made:
        loop.close()


PRIOR = AcquisitionConfig(method="prior")


def test_what_was_interrupted_is_simulated_though_the_hours_are_over(loops: Loops) -> None:
    # An earlier process had sixteen slots; now there are two, and no time is left.
    first = loops(Workers(16, HOUR), PRIOR)
    interrupted = first.proposer.from_prior(16)
    first.journal.record(interrupted, lambda: None)
    loop = loops(Workers(2, HOUR), PRIOR, next_id=16)
    loop.pool.submit(interrupted)
    loop.train_and_simulate(1 << 40, 100, deadline=-1.0)
    assert sorted(loop.store.ids().tolist()) == list(range(16))
    assert loop.spent == 16


def test_once_the_simulators_hours_are_spent_nothing_more_starts(loops: Loops) -> None:
    # The first of eight takes all that there is; by then seven run, and one waits at a worker's door.
    loop = loops(Workers(8, 10 * HOUR), PRIOR)
    loop.train_and_simulate(1 << 40, 100, None, seconds=5 * HOUR)
    assert loop.spent <= 8 + 2
    assert not len(np.setdiff1d(loop.journal.read().id, loop.store.ids()))


def test_what_is_withdrawn_is_what_no_worker_has_and_this_process_proposed() -> None:
    pool = SimulationPool(Workers(2, HOUR), retries=1)  # type: ignore[arg-type]
    theta = np.zeros((20, 1))
    ids = np.arange(20)
    proposals = Proposals.of_kind(0, theta, ProposalKind.PRIOR, 0)
    pool.submit(proposals.take(ids < 10))
    pool.submit(proposals.take(ids >= 10))
    assert pool.withdraw(since=8) == 12
    assert sorted(pool.pending.id.tolist()) == list(range(8))
    assert pool.withdraw() == 8 - 3
    assert pool.num_pending == 3
