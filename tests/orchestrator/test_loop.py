"""The loop with workers and a trainer whose time is only counted: what starts, what is kept, and when it ends."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from waiting import PATIENCE

from learners import whiten
from learners.prior_density import PriorDensity
from orchestrator.acquisition import Candidates, LargestVariance
from orchestrator.config_learner import AcquisitionConfig
from orchestrator.executor import Blame, Ended, Lost
from orchestrator.journal import ProposalJournal
from orchestrator.loop import Interrupted, SimulationLoop
from orchestrator.pacing import Goal
from orchestrator.pool import SimulationPool
from orchestrator.proposal import Finished, ProposalKind, Proposals
from orchestrator.proposer import Proposer
from orchestrator.store import SimulationStore
from orchestrator.trainer import Snapshot
from simulators.errors import DataError, ObservationError, RunDirectoryError
from simulators.outcome import Outcome, Outcomes, Status

HOUR = 3600.0
PRIOR = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
ONLY_PRIOR = AcquisitionConfig(method="prior")


#: What is made of the number of a simulation and its theta.
Result = Callable[[int, np.ndarray], np.ndarray | None]


class Workers:
    """An executor of `slots` workers whose simulations take `seconds`, by turns a little more and less, and no time.

    `result` gives x of the number of the simulation and theta, or None for a failure.
    """

    widest = 1

    def __init__(self, slots: int, seconds: float, result: Result = lambda _, theta: theta) -> None:
        self.slots, self.seconds, self.time, self.result = slots, seconds, 0.0, result
        self._done = itertools.count()
        self._waiting: dict[int, Any] = {}
        self._running: dict[int, tuple[float, float, Any]] = {}
        self._recalled: list[int] = []

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

    def wait(self, _timeout: float) -> list[Ended | Lost]:
        if self._recalled:
            recalled, self._recalled = self._recalled, []
            return [Lost(task, False, Blame.NONE, "recalled") for task in recalled]
        if not self._running:
            return []
        task = min(self._running, key=lambda t: self._running[t])
        self.time, seconds, theta = self._running.pop(task)
        self._begin()
        outcomes = Outcomes.from_rows([self._outcome(row, seconds) for row in theta])
        return [Ended(task, outcomes, "worker", seconds * len(theta))]

    def _outcome(self, theta: np.ndarray, seconds: float) -> Outcome:
        x = self.result(next(self._done), theta)
        if x is None:
            return Outcome(Status.RAISED, None, "out of order", self.time, seconds)
        return Outcome(Status.OK, x, "", self.time, seconds)

    def now(self) -> float:
        return self.time

    def recall(self) -> None:
        self._recalled, self._waiting = [*self._waiting], {}

    def stop(self) -> None:
        pass


class NoTrainer:
    """One that is never asked."""

    busy, last_seconds = False, None

    def poll(self, _timeout: float = 0.0) -> None:
        return None

    def add(self, *_: object) -> None:
        pass


class Modelling:
    """A trainer that takes `seconds` on the workers' clock; model after model is as uncertain as the list says."""

    def __init__(self, workers: Workers, seconds: float, epistemic: Iterable[float] = itertools.repeat(1.0)) -> None:
        self._workers, self.last_seconds, self._epistemic = workers, seconds, iter(epistemic)
        self._ready: float | None = None
        self.models = 0

    @property
    def busy(self) -> bool:
        return self._ready is not None

    def update(self, *_: object, **__: object) -> None:
        self._ready = self._workers.time + self.last_seconds

    def poll(self, timeout: float = 0.0) -> Snapshot | None:
        if self._ready is not None and timeout:  # nothing else is waited for
            self._workers.time = max(self._workers.time, self._ready)
        if self._ready is None or self._workers.time < self._ready:
            return None
        self._ready, self.models = None, self.models + 1
        generator = torch.Generator().manual_seed(self.models)
        ell, u = torch.randn(3, 1000, generator=generator), torch.randn(1000, 2, generator=generator)
        one = torch.ones(1000)
        density: Any = PriorDensity(PRIOR, whiten(PRIOR), (0.1, 2.0))
        metrics = {"epistemic": next(self._epistemic)}
        return Snapshot(0, density, Candidates(u, one, ell, one, one), metrics, b"")

    def add(self, *_: object) -> None:
        pass


def settle(loop: SimulationLoop) -> None:
    """Waits for the loop's threads: by the workers' clock they take no time."""
    assert loop.writer.flush(PATIENCE)
    if (choice := loop._choice._under_way) is not None:
        choice.exception(PATIENCE)


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
        observed: int | None = None,
    ) -> SimulationLoop:
        proposer = Proposer(PRIOR, whiten(PRIOR), config, 0, next_id, LargestVariance(), targeted=True)
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
            dim_x=store.summary().width,
            dim_observation=observed,
            until=until,
            stop_wait=0.0,
            stopping=stopping,
            on_tick=lambda: settle(loop),
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


def statuses(loop: SimulationLoop) -> Counter[str]:
    """Rows in the store by how they ended."""
    found: Counter[str] = Counter()
    for (_, status), number in loop.store.summary().counts.items():
        found[status] += number
    return found


def test_what_was_interrupted_is_simulated_though_the_hours_are_over(loops: Loops) -> None:
    # An earlier process had sixteen slots; now there are two, and no time is left.
    first = loops(Workers(16, HOUR), ONLY_PRIOR)
    interrupted = first.proposer.from_prior(16)
    first.journal.record(interrupted, lambda: None)
    loop = loops(Workers(2, HOUR), ONLY_PRIOR, next_id=16)
    loop.pool.submit(interrupted)
    loop.train_and_simulate(Goal(1 << 40, 100, deadline=-1.0))
    assert sorted(loop.store.ids().tolist()) == list(range(16))
    assert loop.tally.spent == 16


def test_once_the_simulators_hours_are_spent_nothing_more_starts(loops: Loops) -> None:
    # The first of eight takes all that there is; by then seven run, and one waits at a worker's door.
    loop = loops(Workers(8, 10 * HOUR), ONLY_PRIOR)
    loop.train_and_simulate(Goal(1 << 40, 100, seconds=5 * HOUR))
    assert loop.tally.spent <= 8 + 2
    assert not len(np.setdiff1d(loop.journal.read().id, loop.store.ids()))


@pytest.mark.parametrize("full", [False, True], ids=["after the deadline", "when it is full"])
def test_a_journal_written_anew_keeps_what_the_store_could_not_take_yet(
    loops: Loops, full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = Workers(4, 60.0)
    loop = loops(workers, ONLY_PRIOR)
    if full:
        monkeypatch.setattr("orchestrator.journal._ROTATE_ROWS", 0)
    append, mended, finished = loop.store.append, threading.Event(), []

    def failing_from_the_third_minute(rows: Finished) -> None:
        if workers.time > 180.0 and not mended.is_set():
            raise RunDirectoryError("the disk is full")
        append(rows)

    record, rotated = loop._record, []

    def noting(rows: Finished) -> None:
        record(rows)
        finished.extend(rows.proposals.id.tolist())

    def look() -> None:
        if workers.time <= 180.0:
            return settle(loop)
        known = {*loop.store.ids().tolist(), *loop.journal.read().id.tolist()}
        assert known.issuperset(finished)
        if not loop.pool.num_pending:
            rotated.append(loop.writer.waiting)
            mended.set()
        return None

    monkeypatch.setattr(loop.store, "append", failing_from_the_third_minute)
    monkeypatch.setattr(loop, "_record", noting)
    loop.on_tick = look
    loop.train_and_simulate(Goal(1 << 40, 100, deadline=None if full else 180.0, seconds=960.0 if full else None))
    # Rows waited, and are in the store once it could take them.
    assert rotated[0] > 0
    assert sorted(loop.store.ids().tolist()) == sorted(finished)


def test_once_asked_to_stop_nothing_more_starts(loops: Loops) -> None:
    workers = Workers(4, HOUR)
    loop = loops(workers, ONLY_PRIOR)
    loop.stop_wait = 1e9
    loop.on_tick = lambda: loop.stopping.set() if loop.tally.spent >= 8 else None  # type: ignore[func-returns-value]
    left = []
    # By then all is safe: where Ray is gone, it takes a while.
    workers.stop = lambda: left.append((loop.writer.waiting, loop.journal._file))  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        loop.train_and_simulate(Goal(1 << 40, 100))
    assert left == [(0, None)]
    # One more ended before the loop looked, and four ran; what waited at a worker's door did not start.
    assert len(loop.store) == 8 + 1 + 4
    journal = loop.journal.read().id
    assert len(np.setdiff1d(journal, loop.store.ids())) > 0


def test_however_costly_simulations_are_the_priors_share_is_drawn_from_it(loops: Loops) -> None:
    # Model follows model: there are always more chosen points than workers can take.
    workers = Workers(8, 60.0)
    loop = loops(workers, AcquisitionConfig(), Modelling(workers, seconds=60.0))
    loop.train_and_simulate(Goal(450, 50))
    kinds = loop.store.read(["id", "proposal"]).sort_by("id")["proposal"].to_pylist()[50:]
    assert kinds.count("prior") / len(kinds) == pytest.approx(0.2, abs=0.05)
    assert kinds.count("acquisition") > 0.3 * len(kinds)


@pytest.mark.parametrize(
    ("epistemic", "models"),
    [([0.9, 0.1, 0.9, 0.2, 0.3, 0.9], 5), ([0.9, 0.1, 0.9, 0.1, 0.9, 0.1], None)],
    ids=["two-in-a-row", "never-reached"],
)
def test_simulating_ends_after_two_models_in_a_row_that_are_certain_enough(
    loops: Loops, epistemic: list[float], models: int | None
) -> None:
    workers = Workers(8, 60.0)
    trainer = Modelling(workers, 60.0, itertools.cycle(epistemic))
    loop = loops(workers, AcquisitionConfig(), trainer, until=0.5)
    loop.train_and_simulate(Goal(250, 50))
    assert loop.accurate == (models is not None)
    if models is None:
        assert loop.tally.trainable == 250
        assert trainer.models > len(epistemic)
    else:
        assert trainer.models == models
        assert loop.tally.trainable < 250
        assert not loop.pool.num_pending


def _first_is_odd(number: int, theta: np.ndarray) -> np.ndarray:
    return theta[:1] if number == 0 else theta


@pytest.mark.parametrize("observed", [2, None])
def test_one_odd_first_result_does_not_decide_how_long_x_is(loops: Loops, observed: int | None) -> None:
    loop = loops(Workers(2, 1.0, _first_is_odd), ONLY_PRIOR, observed=observed)
    loop.train_and_simulate(Goal(60, 30))
    assert loop.tally.spent == loop.tally.trainable == len(loop.store) == 60
    assert loop.dim_x == loop.store.summary().width == 2
    assert statuses(loop) == {"ok": 59, "wrong_shape": 1}
    assert loop.tally.counts == {Status.OK: 59, Status.WRONG_SHAPE: 1}
    [reason] = set(loop.store.read(["reason"])["reason"].to_pylist()) - {""}
    assert (
        reason == f"returned 1 numbers, but {'the observation has' if observed else 'earlier simulations returned'} 2"
    )


def test_results_that_never_fit_the_observation_are_kept_and_end_the_campaign(
    loops: Loops, caplog: pytest.LogCaptureFixture
) -> None:
    # One that has failed says nothing of the length.
    loop = loops(Workers(2, 1.0, lambda n, theta: None if n == 3 else theta), ONLY_PRIOR, observed=5)
    with pytest.raises(ObservationError, match=r"observation has 5 numbers, but the simulator returned 2.*mend"):
        loop.train_and_simulate(Goal(300, 30))
    loop.close()
    assert 30 <= len(loop.store) <= 33
    assert loop.store.summary().width == 2
    assert [record.message[:58] for record in caplog.records] == [
        "the observation has 5 numbers, but the first simulation re"
    ]
    # A mended observation goes on with them.
    stored = len(loop.store)
    again = loops(Workers(2, 1.0), ONLY_PRIOR, next_id=100, observed=2)
    again.train_and_simulate(Goal(50, 30))
    assert again.tally.spent == len(again.store) == 50
    assert statuses(again) == {"ok": 49, "raised": 1}
    assert len(np.unique(again.store.ids())) == 50 > stored


def test_a_budget_smaller_than_the_first_portion_is_judged_at_its_end(loops: Loops) -> None:
    loop = loops(Workers(2, 1.0), ONLY_PRIOR, observed=5)
    with pytest.raises(ObservationError, match="returned 2"):
        loop.train_and_simulate(Goal(10, 30))
    loop.close()
    assert statuses(loop) == {"ok": 10}


def test_what_does_not_fit_the_observation_is_simulated_again_after_a_stop(loops: Loops) -> None:
    loop = loops(Workers(2, 1.0), ONLY_PRIOR, observed=5)
    loop.on_tick = lambda: loop.stopping.set() if len(loop.length.held) > 3 else None
    with pytest.raises(Interrupted):
        loop.train_and_simulate(Goal(60, 30))
    assert not len(loop.store)
    assert len(loop.journal.read()) > 3


def test_results_of_many_lengths_none_of_them_the_observations_are_failures(loops: Loops) -> None:
    workers = Workers(2, 1.0, lambda number, theta: np.resize(theta, 1 + number % 3))
    loop = loops(workers, ONLY_PRIOR, observed=5)
    with pytest.raises(
        DataError, match=r"none of the last 3\d .*wrong_shape: returned \d numbers, but the observation"
    ):
        loop.train_and_simulate(Goal(300, 30))
    loop.close()
    assert set(statuses(loop)) == {"wrong_shape"}


def test_results_of_another_length_than_the_stored_ones_end_the_campaign_early(loops: Loops) -> None:
    loop = loops(Workers(2, 1.0), ONLY_PRIOR)
    loop.train_and_simulate(Goal(60, 30))
    loop.close()
    again = loops(Workers(2, 1.0, lambda _, theta: np.resize(theta, 4)), ONLY_PRIOR, next_id=60)
    with pytest.raises(DataError, match=r"simulator returned 4 numbers each time, but the x in .* have 2; mend"):
        again.train_and_simulate(Goal(600, 30))
    again.close()
    assert 20 <= statuses(again)["wrong_shape"] <= 23
    # Mended, it goes on.
    mended = loops(Workers(2, 1.0), ONLY_PRIOR, next_id=200)
    mended.train_and_simulate(Goal(100, 30))
    assert mended.tally.spent == 100


def test_a_simulator_that_breaks_later_ends_the_campaign(loops: Loops) -> None:
    loop = loops(Workers(2, 1.0, lambda number, theta: theta if number < 60 else None), ONLY_PRIOR)
    with pytest.raises(
        DataError, match=r"none of the last 5\d simulations succeeded, 5\d of them with 'raised: out of"
    ):
        loop.train_and_simulate(Goal(3000, 30))
    loop.close()
    assert 110 <= len(loop.store) <= 115
    # In another process too, which has what succeeded before.
    again = loops(Workers(2, 1.0, lambda *_: None), ONLY_PRIOR, next_id=200)
    with pytest.raises(DataError, match="none of the last"):
        again.train_and_simulate(Goal(3000, 30))
    again.close()
    assert len(again.store) < 300


def test_one_that_fails_by_its_nature_goes_on(loops: Loops) -> None:
    # Forty failures in a row are more than the first portion, and nothing out of the ordinary.
    loop = loops(Workers(2, 1.0, lambda number, theta: theta if number % 41 == 0 else None), ONLY_PRIOR)
    loop.train_and_simulate(Goal(1000, 30))
    assert loop.tally.spent == 1000
    assert loop.successes.ended == {True: 25, False: 975}


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
