"""The campaign's one loop: simulations, training and acquisition overlap, nothing waits for a barrier."""

from __future__ import annotations

__all__ = ["Interrupted", "SimulationLoop"]

import threading
from collections.abc import Callable
from dataclasses import replace

from simulators.errors import TemperflowError

from .choice import ChoiceAhead
from .config_learner import AcquisitionConfig
from .journal import ProposalJournal
from .pacing import Goal, Pacing
from .pool import SimulationPool
from .proposal import Finished, Proposals
from .proposer import Proposer
from .result_length import ResultLength
from .start_order import cut
from .store import SimulationStore
from .store_writer import StoreWriter
from .successes import Successes
from .supervisor import TrainerSupervisor
from .tally import Tally
from .trainer import Snapshot, Trained

_POLL_SECONDS = 0.1
_MAX_UNWRITTEN = 200_000
#: One model may be certain by chance.
_CERTAIN = 2


class Interrupted(TemperflowError):  # noqa: N818 (no error: the user's wish)
    """The campaign was asked to stop; everything finished is in the store."""


class SimulationLoop:
    """Runs simulations until a target is met, and trains beside.

    Arguments:
        pool, store, journal, trainer, proposer, config: The parts.
        dim_x: Length of the results in the store, None if there are none.
        dim_observation: Length of the observation, None for an amortized campaign.
        until: Nats of the model's own uncertainty below which simulating ends, or None.
        stop_wait: Seconds that simulations in flight have to end when asked to stop.
        stopping: Set to end gracefully.
        on_tick: Called after every turn of the loop.
        on_snapshot: Called with every new model.

    Attributes:
        tally: What has been simulated.
        snapshot: The latest model.
        length: What is known of the length of x.
        successes: What this process has seen of successes and failures.
    """

    def __init__(
        self,
        pool: SimulationPool,
        store: SimulationStore,
        journal: ProposalJournal,
        trainer: TrainerSupervisor,
        proposer: Proposer,
        config: AcquisitionConfig,
        dim_x: int | None,
        dim_observation: int | None,
        until: float | None,
        stop_wait: float,
        stopping: threading.Event,
        on_tick: Callable[[], None],
        on_snapshot: Callable[[Snapshot], None],
    ) -> None:
        self.pool, self.store, self.journal, self.trainer, self.proposer = pool, store, journal, trainer, proposer
        self.config = config
        self.until, self._certain_models = until, 0
        self.stop_wait, self.stopping, self.on_tick = stop_wait, stopping, on_tick
        self.on_snapshot = on_snapshot
        self.length = ResultLength(dim_x, dim_observation, store.location)
        self.writer = StoreWriter(store)
        self.tally = Tally(store.summary())
        self.successes = Successes()
        self.snapshot: Snapshot | None = None
        self._closed = False
        self._asked = 0
        self._choice = ChoiceAhead(proposer, config)

    @property
    def dim_x(self) -> int | None:
        """Length of x, None while it is not known."""
        return self.length.value

    @property
    def choosing(self) -> dict[str, float]:
        """What there is to tell of acquisition, by name."""
        return self._choice.metrics

    def warm_up(self) -> None:
        """Waits until simulations can start without delay on all slots that there are."""
        while not self.pool.executor.warm_up(_POLL_SECONDS):
            self._check_stop()
            self.on_tick()

    def submit(self, proposals: Proposals) -> None:
        """Hands proposals to the pool, written down before, so that they survive this process."""
        self.journal.record(proposals, self._turn)
        self.pool.submit(proposals)

    def train_and_simulate(self, goal: Goal) -> None:
        """Runs simulations that may be trained on until the goal is reached, choosing them ever better."""
        pacing = Pacing(self.pool, self.trainer, self.tally, self.config, goal)
        # What an earlier process had in flight may have started there, and the slow ones are still among it.
        since = self.proposer.next_id
        while True:
            in_flight = self.pool.num_pending
            ended = pacing.late or self.accurate
            affordable = pacing.affordable
            enough = ended or (affordable is not None and affordable <= 0)
            # A budget counts starts: what no worker has yet is not simulated, now or by a later process.
            if (ended or pacing.spent) and self.pool.withdraw(since):
                self._rotate()
            if (self.tally.trainable >= goal.target or enough) and not in_flight:
                break
            if not enough and self._storing:
                self._top_up(pacing.room(self._trained))
            self._turn()
            self._check_success(goal.initial)
            self._train(pacing)
        self._finish_update()
        self.save()

    def simulate(self, proposals: Proposals) -> None:
        """Runs given proposals to the end."""
        self.journal.record(proposals, self._turn)
        waiting = proposals
        while len(waiting) or self.pool.num_pending:
            if self._storing:
                n = self.pool.appetite
                self.pool.submit(waiting.take(slice(0, n)))
                waiting = waiting.take(slice(n, None))
            self._turn(waiting)
        self.save()

    def save(self) -> None:
        """Waits until everything finished is in the store."""
        self._judge(final=True)
        while not self.writer.flush(_POLL_SECONDS):
            self._check_stop()
            self.on_tick()
        self._hand_over()

    def wait_for_posterior(self) -> Trained:
        """The posterior of the final training under way."""
        while True:
            result = self.trainer.poll(_POLL_SECONDS)
            if isinstance(result, Trained):
                return result
            self._rest()

    def close(self) -> None:
        """Ends simulations, and writes what has finished.

        Raises:
            RunDirectoryError: It could not be written.
        """
        if self._closed:
            return
        self._closed = True
        self._choice.close()
        try:
            # First what must not be lost: where Ray is gone, ending simulations takes a while.
            self._put(self.length.close())
            self.writer.close()
        finally:
            self.journal.close()
            self.pool.cancel()

    def _turn(self, waiting: Proposals | None = None) -> None:
        """One look at what has ended; `waiting` are written down already, and not in the pool yet."""
        self._record(self.pool.poll(_POLL_SECONDS))
        self._hand_over()
        if self.journal.full:
            self._rotate(waiting)
        self._check_stop()
        self.on_tick()

    def _rotate(self, waiting: Proposals | None = None) -> None:
        """Begins the journal anew with all that would be lost without it.

        Finished rows may wait for the store, or be held back.
        """
        unwritten = [rows.proposals for rows in [*self.writer.unwritten, self.length.held] if len(rows)]
        more = [] if waiting is None else [waiting]
        self.journal.rotate(Proposals.concatenate([self.pool.pending, *unwritten, *more]))

    def _record(self, rows: Finished) -> None:
        """Accounts for finished simulations, once."""
        if not len(rows):
            return
        self.tally.spend(rows)
        self.tally.add(self.length.held, -1)
        self._put(self.length.admit(rows))
        self.tally.add(self.length.held)

    def _put(self, rows: Finished) -> None:
        """Accounts for rows of which it is known how they ended, and has them written."""
        if not len(rows):
            return
        self.tally.add(rows)
        self.successes.add(rows)
        trains = rows.proposals.trains
        self._choice.simulated(rows.proposals.take(trains), rows.outcomes.ok[trains])
        self.writer.put(rows)

    def _judge(self, final: bool) -> None:
        """Ends a campaign whose results have another length than they must have; see `ResultLength.verdict`."""
        self.tally.add(self.length.held, -1)
        rows, error = self.length.verdict(final)
        self._put(rows)
        self.tally.add(self.length.held)
        if error is not None:
            raise error

    def _hand_over(self) -> None:
        """Gives the trainer what is in the store: nothing is learned from that could still be lost."""
        for rows in self.writer.committed():
            self.trainer.add(rows, self.dim_x)

    @property
    def _storing(self) -> bool:
        """Whether the store keeps up: what it cannot take must not pile up in memory."""
        return self.writer.problem is None and self.writer.waiting < _MAX_UNWRITTEN

    def _top_up(self, room: int) -> None:
        n = min(room, self.pool.appetite)
        if n <= 0:
            return
        # The prior's share comes first: where simulations are costly, choices would fill all that is wanted.
        num_prior = self.proposer.num_prior(n, self.snapshot)
        chosen = self._choice.take(n - num_prior)
        rest = self.proposer.batch(n - len(chosen), num_prior, self.snapshot)
        self.submit(Proposals.concatenate([chosen, rest]))

    @property
    def _trained(self) -> int | None:
        return None if self.snapshot is None else self.snapshot.rows

    def _train(self, pacing: Pacing) -> None:
        result = self.trainer.poll()
        if isinstance(result, Snapshot):
            model = self._learn(result)
            self._choice.begin(model, self.pool.pending, self.tally.trainable - model.rows)
        # One more model than it takes to be certain would only delay the final training, and may be less certain.
        trainable, goal = self.tally.trainable, pacing.goal
        if self.trainer.busy or trainable >= goal.target or self.accurate or not self.config.learns:
            return
        if trainable < max(goal.initial, (self._trained or 0) + 1):
            return
        before, unfinished = cut(self.pool.pending.id, self.proposer.next_id)
        above = self.proposer.next_id - before - (self.pool.num_pending - unfinished)
        rows = trainable - above - self.writer.waiting - len(self.length.held)
        if pacing.to_train(rows, self._trained):
            self._asked = rows
            self.trainer.update(before, self.dim_x, alone=pacing.held_back(self._trained))

    @property
    def accurate(self) -> bool:
        """Whether two models in a row were as certain as asked for."""
        return self._certain_models >= _CERTAIN

    def _learn(self, snapshot: Snapshot) -> Snapshot:
        if self.until is not None:
            self._certain_models = self._certain_models + 1 if snapshot.metrics["epistemic"] < self.until else 0
        # Our own count, from which the next steps are planned.
        self.snapshot = replace(snapshot, rows=self._asked)
        self.on_snapshot(snapshot)
        return self.snapshot

    def _check_success(self, initial: int) -> None:
        """A simulator that does not succeed any more is not worth the rest of the budget."""
        self._judge(final=self.successes.ended.total() + len(self.length.held) >= initial)
        own = self.tally.own
        self.successes.check(initial, own.total(), own[True], self.store.location)

    def _finish_update(self) -> None:
        """Lets a training under way end: the trainer does one thing at a time."""
        while self.trainer.busy:
            result = self.trainer.poll(_POLL_SECONDS)
            if isinstance(result, Snapshot):
                self._learn(result)
            self._rest()

    def _rest(self) -> None:
        """A turn while nothing is simulated: nodes come and go all the same, the trainer's too."""
        self._record(self.pool.poll(0.0))
        self._check_stop()
        self.on_tick()

    def _check_stop(self) -> None:
        if not self.stopping.is_set():
            return
        self.pool.recall()
        patience = self.pool.executor.now() + self.stop_wait
        while self.pool.running and self.pool.executor.now() < patience:
            self._record(self.pool.poll(_POLL_SECONDS, refill=False))
        self.close()
        raise Interrupted(
            f"stopped as asked; {len(self.store)} simulations are safe in {self.store.location}. Run the same "
            "command again to continue"
        )
