"""The campaign's one loop: simulations, training and acquisition overlap, nothing waits for a barrier."""

from __future__ import annotations

__all__ = ["Interrupted", "SimulationLoop"]

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from learners.learner import MIN_SIMULATIONS
from simulators.errors import DataError, ObservationError, TemperflowError
from simulators.outcome import Outcome, Status

from .config import AcquisitionConfig
from .pool import SimulationPool
from .proposal import Finished, Proposal, ProposalKind
from .proposer import Proposer
from .store import SimulationStore
from .supervisor import TrainerSupervisor
from .trainer import Snapshot, Trained

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_CHEAP_START_SECONDS = 30.0
_MAX_CHOSEN = 128


class Interrupted(TemperflowError):  # noqa: N818 (no error: the user's wish)
    """The campaign was asked to stop; everything finished is in the store."""


class SimulationLoop:
    """Runs simulations until a target is met, and trains beside.

    Arguments:
        pool, store, trainer, proposer, config: The parts.
        dim_x: Length that x must have, None to take the first result's.
        dim_observation: Length of the observation, None for an amortized campaign.
        stopping: Set to end gracefully.
        on_tick: Called after every turn of the loop.

    Attributes:
        counts: Rows in the store by status.
        seconds: Simulator seconds spent.
        trainable: Rows in the store that may be trained on.
        valid: Those of them with a result.
        snapshot: The latest model.
    """

    def __init__(
        self,
        pool: SimulationPool,
        store: SimulationStore,
        trainer: TrainerSupervisor,
        proposer: Proposer,
        config: AcquisitionConfig,
        dim_x: int | None,
        dim_observation: int | None,
        stopping: threading.Event,
        on_tick: Callable[[], None],
    ) -> None:
        self.pool, self.store, self.trainer, self.proposer = pool, store, trainer, proposer
        self.config, self.dim_x, self.dim_observation = config, dim_x, dim_observation
        self.stopping, self.on_tick = stopping, on_tick
        self.counts: Counter[str] = Counter()
        self.seconds = 0.0
        self.trainable = self.valid = 0
        self._reasons: Counter[str] = Counter()
        self._recount()
        self.snapshot: Snapshot | None = None
        self._unseen: list[Proposal] = []
        self._chosen: list[Proposal] = []
        self._choice: Future[list[Proposal]] | None = None
        self._choices = ThreadPoolExecutor(1, thread_name_prefix="acquisition")

    def train_and_simulate(self, target: int, initial: int, deadline: float | None) -> None:
        """Runs simulations that may be trained on until there are `target`, choosing them ever better.

        Arguments:
            target: Number of such rows in the end, those from before included.
            initial: Rows before the first training.
            deadline: Monotonic time after which nothing new starts, or None.
        """
        while True:
            in_flight = len(self.pool.pending)
            late = deadline is not None and time.monotonic() > deadline
            if (self.trainable >= target and not in_flight) or (late and not in_flight):
                break
            if not late:
                room = target - self.trainable - in_flight
                self._top_up(min(room, self._allowance(initial, target) - in_flight))
            self._turn()
            self._check_success(initial)
            self._train(initial, target)
        self._finish_update()

    def simulate(self, proposals: Sequence[Proposal]) -> None:
        """Runs given proposals to the end."""
        waiting = list(proposals)
        while waiting or self.pool.pending:
            n = self.pool.appetite
            self.pool.submit(waiting[:n])
            del waiting[:n]
            self._turn()

    def wait_for_posterior(self) -> Trained:
        """The posterior of the final training under way."""
        while True:
            result = self.trainer.poll(_POLL_SECONDS)
            if isinstance(result, Trained):
                return result
            self._check_stop()
            self.on_tick()

    def _recount(self) -> None:
        """Takes account of rows from before this process."""
        table = self.store.read(["status", "seconds", "proposal"])
        self.counts = Counter(table["status"].to_pylist())
        self.seconds = float(sum(table["seconds"].to_pylist()))
        trains = [ProposalKind(kind).trains for kind in table["proposal"].to_pylist()]
        self.trainable = sum(trains)
        ok = [status == Status.OK for status in table["status"].to_pylist()]
        self.valid = sum(t and o for t, o in zip(trains, ok, strict=True))

    def _turn(self) -> None:
        self._record(self.pool.poll(_POLL_SECONDS))
        self._check_stop()
        self.on_tick()

    def _record(self, finished: list[Finished]) -> None:
        rows = [self._checked(row) for row in finished]
        self.store.append(rows)
        for row in rows:
            self.counts[row.outcome.status] += 1
            self.seconds += row.outcome.seconds
            self.trainable += row.proposal.kind.trains
            if row.outcome.status is Status.OK:
                self.valid += row.proposal.kind.trains
            else:
                self._reasons[f"{row.outcome.status}: {row.outcome.reason}"] += 1
        if self.dim_x is not None and self.dim_observation not in (None, self.dim_x):
            raise ObservationError(
                f"the observation has {self.dim_observation} numbers, but the simulator returned {self.dim_x}; both "
                f"must list the same quantities in the same order. The simulations are kept in {self.store.directory}"
            )
        self.trainer.add(rows)
        self._unseen += [row.proposal for row in rows if row.proposal.kind.trains]

    def _checked(self, row: Finished) -> Finished:
        """A result of another length than the first one is a failure."""
        x = row.outcome.x
        if x is None:
            return row
        if self.dim_x is None:
            self.dim_x = len(x)
        if len(x) == self.dim_x:
            return row
        reason = f"returned {len(x)} numbers, but earlier simulations returned {self.dim_x}"
        wrong = Outcome(Status.WRONG_SHAPE, None, reason, row.outcome.started, row.outcome.seconds)
        return Finished(row.proposal, wrong, row.attempts, row.worker)

    def _top_up(self, room: int) -> None:
        n = min(room, self.pool.appetite)
        if n <= 0:
            return
        self._take_choice()
        chosen, self._chosen = self._chosen[:n], self._chosen[n:]
        self.pool.submit(chosen + self.proposer.batch(n - len(chosen), self.snapshot, len(chosen)))

    def _allowance(self, initial: int, target: int) -> int:
        """How many more rows may be in flight, so that cheap simulations do not outrun the model.

        Costly ones are never held back: where simulating takes longer than training, an idle worker is worse
        than a proposal from a slightly old model.
        """
        unlimited = 1 << 40
        seconds = self.pool.mean_seconds
        if self.config.method in ("prior", "sobol"):
            return unlimited
        if seconds is None:
            return initial
        if self.snapshot is None:
            cheap = initial * seconds / self.pool.slots < _CHEAP_START_SECONDS
            # Where too many fail to train, another portion follows.
            portions = 1 if self._ready(initial) else 1 + self.trainable // initial
            return portions * initial - self.trainable if cheap else unlimited
        ahead = self.config.growth * self.snapshot.rows
        training = self.trainer.last_seconds or 0.0
        if ahead * seconds / self.pool.slots >= 0.5 * training:
            return unlimited
        # Near the end one more update would only delay the final training.
        near = target - self.snapshot.rows < 1.5 * ahead
        return (target if near else self.snapshot.rows + int(ahead)) - self.trainable

    def _train(self, initial: int, target: int) -> None:
        result = self.trainer.poll()
        if isinstance(result, Snapshot):
            self.snapshot = result
            self._unseen = self._unseen[max(0, len(self._unseen) - (self.trainable - result.rows)) :]
            self._start_choice()
        if self.trainer.busy or self.trainable >= target or self.config.method in ("prior", "sobol"):
            return
        trained = 0 if self.snapshot is None else self.snapshot.rows
        allowance = self._allowance(initial, target)
        held_back = allowance <= 0 and not self.pool.pending
        enough = self.trainer.rows >= max(initial, trained + max(10, 0.1 * trained))
        paced = allowance < 1 << 39
        if self._ready(initial) and self.trainer.rows > trained and (held_back or (enough and not paced)):
            self.trainer.update(alone=held_back)

    def _ready(self, initial: int) -> bool:
        """Whether there is enough to train on for the first time."""
        return self.trainer.rows >= initial and self.valid >= MIN_SIMULATIONS

    def _check_success(self, initial: int) -> None:
        """A simulator that never succeeds is not worth the rest of the budget."""
        # Only failures of this process count: after mending, the same command must have a chance.
        failed = self._reasons.total()
        if self.valid or failed < initial:
            return
        [(reason, number)] = self._reasons.most_common(1)
        raise DataError(
            f"none of the last {failed} simulations succeeded, {number} of them with '{reason}'; mend the simulator "
            f"and run again. All are kept in {self.store.directory}"
        )

    def _finish_update(self) -> None:
        """Lets a training under way end: the trainer does one thing at a time."""
        while self.trainer.busy:
            result = self.trainer.poll(_POLL_SECONDS)
            if isinstance(result, Snapshot):
                self.snapshot = result
            self._check_stop()
            self.on_tick()

    def _start_choice(self) -> None:
        if self.config.method != "default" or self._choice is not None or self.snapshot is None:
            return
        wanted = self.config.chosen_share * self.config.growth * self.snapshot.rows
        n = min(_MAX_CHOSEN, round(wanted))
        if n > 0:
            pending = self.pool.pending + self._unseen
            self._choice = self._choices.submit(self.proposer.chosen, n, self.snapshot, pending)

    def _take_choice(self) -> None:
        if self._choice is None or not self._choice.done():
            return
        try:
            self._chosen = self._choice.result()
        except Exception as error:
            # A choice that fails costs information, not the campaign: the density goes on proposing.
            logger.warning("the acquisition failed (%r); proposals come from the tempered density meanwhile", error)
        self._choice = None

    def _check_stop(self) -> None:
        if not self.stopping.is_set():
            return
        patience = time.monotonic() + 5.0
        while self.pool.running and time.monotonic() < patience:
            rows = [self._checked(row) for row in self.pool.poll(_POLL_SECONDS, refill=False)]
            self.store.append(rows)
        self.pool.cancel()
        raise Interrupted(
            f"stopped as asked; {len(self.store)} simulations are safe in {self.store.directory}. Run the same "
            "command again to continue"
        )
