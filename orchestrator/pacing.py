"""How far simulating may run ahead of the model and of the budget: costly simulations never wait, cheap ones do."""

from __future__ import annotations

__all__ = ["Goal", "Pacing"]

import math
from dataclasses import dataclass

from learners.learner import MIN_SIMULATIONS

from .config_learner import AcquisitionConfig
from .pool import SimulationPool
from .supervisor import TrainerSupervisor
from .tally import Tally

#: Seconds for which slots may stand idle before there is a first model.
_CHEAP_START_SECONDS = 30.0


@dataclass(frozen=True)
class Goal:
    """What simulating works towards; rows are those that may be trained on, those from before included.

    Attributes:
        target: Rows in the end.
        initial: Rows before the first training.
        deadline: Time on the pool's clock after which nothing new starts, or None.
        seconds: Simulator seconds to spend on them in all, or None.
    """

    target: int
    initial: int
    deadline: float | None = None
    seconds: float | None = None


class Pacing:
    """See `docs/method.md`, "Pacing".

    Arguments:
        pool: What simulates: its slots, its clock and the time of a simulation.
        trainer: The time of a training.
        tally: What there is so far.
        config: How simulations are chosen.
        goal: What for.
    """

    def __init__(
        self, pool: SimulationPool, trainer: TrainerSupervisor, tally: Tally, config: AcquisitionConfig, goal: Goal
    ) -> None:
        self.pool, self.trainer, self.tally, self.config, self.goal = pool, trainer, tally, config, goal

    @property
    def late(self) -> bool:
        """Whether the deadline is over."""
        return self.goal.deadline is not None and self.pool.executor.now() > self.goal.deadline

    @property
    def spent(self) -> bool:
        """Whether the simulator seconds are spent."""
        return self.goal.seconds is not None and self.tally.learning_seconds >= self.goal.seconds

    def room(self, trained: int | None) -> int:
        """How many more simulations may start.

        Arguments:
            trained: Rows that the latest model was trained on, None without a model.
        """
        allowed = self.allowance(trained)
        in_flight = self.pool.num_pending
        rows = self.goal.target - self.tally.trainable - in_flight
        limits = [rows, self.affordable, None if allowed is None else allowed - in_flight]
        return min(limit for limit in limits if limit is not None)

    @property
    def affordable(self) -> int | None:
        """How many more simulations the seconds pay for, with those in flight not paid yet; None where unlimited."""
        if self.goal.seconds is None:
            return None
        if self.spent:
            return 0
        if self.pool.mean_seconds is None:
            return None
        left = self.goal.seconds - self.tally.learning_seconds
        return math.ceil(left / max(self.pool.mean_seconds, 1e-9)) - self.pool.num_pending

    def allowance(self, trained: int | None) -> int | None:
        """How many more rows may be in flight, so that cheap simulations do not outrun the model; None for any number.

        Costly ones are never held back: where simulating takes longer than training, an idle worker is worse
        than a proposal from a slightly old model.
        """
        seconds, initial = self.pool.mean_seconds, self.goal.initial
        if not self.config.learns:
            return None
        if seconds is None:
            return initial
        rows = self.tally.trainable
        if trained is None:
            if initial * seconds / self.pool.slots >= _CHEAP_START_SECONDS:
                return None
            # Where too many fail to train, another portion follows.
            portions = 1 if self.ready(rows) else 1 + rows // initial
            return int(max(1.0, self.config.growth) * portions * initial) - rows
        ahead = self.config.growth * trained
        if ahead * seconds / self.pool.slots >= 0.5 * (self.trainer.last_seconds or 0.0):
            return None
        # Near the end one more update would only delay the final training.
        near = self.goal.target - trained < 1.5 * ahead
        return (self.goal.target if near else trained + int(ahead)) - rows

    def ready(self, rows: int) -> bool:
        """Whether `rows` are enough to train on for the first time."""
        return rows >= self.goal.initial and self.tally.valid - (self.tally.trainable - rows) >= MIN_SIMULATIONS

    def to_train(self, rows: int, trained: int | None) -> bool:
        """Whether to train on `rows` now that the trainer is free.

        Where simulating is held back by the model, only once it stands still; else whenever a tenth more are there.
        """
        before = trained or 0
        if not self.ready(rows) or rows <= before:
            return False
        if self.allowance(trained) is None:
            return rows >= max(self.goal.initial, before + max(10, 0.1 * before))
        return self.held_back(trained)

    def held_back(self, trained: int | None) -> bool:
        """Whether nothing is simulated until there is a new model."""
        allowed = self.allowance(trained)
        return allowed is not None and allowed <= 0 and not self.pool.num_pending
