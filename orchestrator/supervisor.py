"""The trainer under supervision: fed with rows, restarted from its checkpoint and the store when it dies."""

from __future__ import annotations

__all__ = ["TrainerSupervisor"]

import contextlib
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from simulators.errors import TemperflowError

from .proposal import Finished, Integers, ProposalKind
from .ray_calls import NoAnswerError, answered
from .store import SimulationStore, split_columns
from .trainer import Snapshot, Trained

logger = logging.getLogger(__name__)

_MAX_RESTARTS = 3
_SEND_SECONDS = 0.5
_SEND_ROWS = 10_000
#: Numbers of x that a new trainer is sent at once, and such messages on the way at most.
_FILL_NUMBERS, _ON_THE_WAY = 1 << 22, 4


class TrainerSupervisor:
    """Sends finished simulations to the trainer, asks it to train, and collects what it returns.

    Arguments:
        start: Makes a new trainer actor.
        store: The truth, from which a new trainer is filled.
        at_once: Whether to start the trainer now, not when it is first asked to train.
    """

    def __init__(self, start: Callable[[], Any], store: SimulationStore, at_once: bool = True) -> None:
        self._start, self._store = start, store
        self._restarts = 0
        self._call: tuple[ray.ObjectRef[Any], str, tuple[Any, ...], float] | None = None
        self._progress_ref: ray.ObjectRef[Any] | None = None
        self.progress: tuple[str, float] = ("waiting", float("nan"))
        self.last_seconds: float | None = None
        self._trainings = 0
        self._unsent: list[Finished] = []
        self._sent = -np.inf
        self._known: Integers = np.zeros(0, dtype=np.int64)
        self._actor: Any = None
        self._filled = False
        if at_once:
            self._refill()

    @property
    def busy(self) -> bool:
        """Whether a training is under way."""
        return self._call is not None

    @property
    def training(self) -> int | None:
        """Number of the training under way, None if there is none."""
        return self._trainings if self.busy else None

    def add(self, rows: Finished, dim_x: int | None) -> None:
        """Hands over simulations that are in the store; those that only calibrate are left out.

        Arguments:
            rows: The simulations.
            dim_x: Length of x, None before the first success.
        """
        if self._actor is None:
            return  # It will be filled from the store.
        rows = rows.take(rows.proposals.trains)
        if len(rows):
            self._unsent.append(rows)
        waiting = sum(map(len, self._unsent))
        if waiting > _SEND_ROWS or time.monotonic() - self._sent > _SEND_SECONDS:
            self._send(dim_x)

    def update(self, before: int, dim_x: int | None, alone: bool = False) -> None:
        """Starts a short training on the simulations with ids below `before`; `alone` where none runs beside."""
        self._trainings += 1
        self._remote("update", before, alone, dim_x=dim_x)

    def finish(self, metadata: dict[str, Any], dim_x: int | None) -> None:
        """Starts the final training, on all."""
        self._trainings += 1
        self._remote("finish", metadata, dim_x=dim_x)

    def poll(self, timeout: float = 0.0) -> Snapshot | Trained | None:
        """The result of the training under way once it has ended, else None.

        Raises:
            TemperflowError: What the trainer has to say to the user.
        """
        if self._call is None:
            return None
        ref, method, arguments, started = self._call
        done, _ = ray.wait([ref], timeout=timeout)
        if not done:
            self._read_progress()
            return None
        self._call = None
        try:
            result: Snapshot | Trained = ray.get(ref)
        except RayActorError as error:
            self._restart(error)
            self._remote(method, *arguments)
            return None
        except RayTaskError as error:
            if isinstance(error.cause, TemperflowError):
                raise error.cause from None
            cause = str(error.cause).strip().splitlines()
            raise TemperflowError(
                f"training failed: {type(error.cause).__name__}: {cause[-1] if cause else ''}; every simulation is in "
                f"{self._store.location}. Run the same command again to continue, with --debug for the traceback"
            ) from error
        self.last_seconds = time.monotonic() - started
        for notice in result.notices:
            logger.warning("%s", notice)
        return result

    def stop(self) -> None:
        """Ends the trainer."""
        if self._actor is not None:
            with contextlib.suppress(NoAnswerError):
                answered(lambda: ray.kill(self._actor))

    def _remote(self, method: str, *arguments: Any, dim_x: int | None = None) -> None:
        if self._actor is None:
            self._refill(dim_x)
        self._send(dim_x)
        self._call = (getattr(self._actor, method).remote(*arguments), method, arguments, time.monotonic())

    def _send(self, dim_x: int | None) -> None:
        # Until the first success x has no length.
        if dim_x is None:
            return
        if not self._filled:
            self._fill(dim_x)
        if not self._unsent:
            return
        rows = Finished.concatenate(self._unsent)
        self._unsent, self._sent = [], time.monotonic()
        # What a new trainer was filled with from the store may come once more from the loop.
        place = np.searchsorted(self._known, rows.proposals.id)
        known = np.append(self._known, -1)[place] == rows.proposals.id
        rows = rows.take(~known)
        if len(rows):
            proposals = rows.proposals
            x, seconds = rows.outcomes.matrix(dim_x), rows.outcomes.seconds
            self._actor.add.remote(proposals.id, proposals.theta, x, proposals.log_density, seconds)

    def _refill(self, dim_x: int | None = None) -> None:
        """Starts a trainer and gives it what is in the store."""
        self._actor, self._filled = self._start(), False
        self._known = np.zeros(0, dtype=np.int64)
        self._fill(dim_x)

    def _fill(self, dim_x: int | None) -> None:
        dim_x = self._store.summary().width or dim_x
        if not dim_x:
            return  # Without a result yet x has no length: later.
        columns = ["theta", "x", "proposal", "proposal_log_density", "seconds"]
        known, sent = [self._known], []
        for table in self._store.pieces(columns, max(1, _FILL_NUMBERS // dim_x)):
            theta, x = split_columns(table)
            if x.shape[1] != dim_x:  # no result among them
                x = np.full((len(table), dim_x), np.nan)
            trains = np.isin(table["proposal"].to_numpy(), [str(kind) for kind in ProposalKind if kind.trains])
            log_proposal, seconds = (
                table[name].to_numpy()[trains].astype(np.float64) for name in ("proposal_log_density", "seconds")
            )
            known.append(table["id"].to_numpy()[trains])
            sent.append(self._actor.add.remote(known[-1], theta[trains], x[trains], log_proposal, seconds))
            # A large store must not wait in memory for the trainer.
            if len(sent) > _ON_THE_WAY:
                _, sent = ray.wait(sent)
        self._known, self._filled = np.concatenate(known), True

    def _restart(self, error: RayActorError) -> None:
        self._restarts += 1
        logger.warning("the trainer was lost (%s): starting a new one from the store", type(error).__name__)
        if self._restarts > _MAX_RESTARTS:
            raise TemperflowError(
                f"the trainer died {self._restarts} times; every simulation is in {self._store.location}. Look for "
                "its cause (memory?) in Ray's logs, then run the same command again to continue"
            ) from error
        self._progress_ref = None
        self._refill()

    def _read_progress(self) -> None:
        if self._progress_ref is None:
            self._progress_ref = self._actor.progress.remote()
            return
        done, _ = ray.wait([self._progress_ref], timeout=0)
        if done:
            with contextlib.suppress(RayActorError):
                self.progress = ray.get(self._progress_ref)
            self._progress_ref = None
