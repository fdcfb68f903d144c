"""The trainer under supervision: fed with rows, restarted from the store when it dies."""

from __future__ import annotations

__all__ = ["TrainerSupervisor"]

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError, RayTaskError

from simulators.errors import TemperflowError
from simulators.outcome import Status

from .proposal import Finished, ProposalKind
from .store import SimulationStore, split_columns
from .trainer import Snapshot, Trained

logger = logging.getLogger(__name__)

_MAX_RESTARTS = 3


class TrainerSupervisor:
    """Sends finished simulations to the trainer, asks it to train, and collects what it returns.

    Arguments:
        start: Makes a new trainer actor.
        store: The truth, from which a new trainer is filled.
    """

    def __init__(self, start: Callable[[], Any], store: SimulationStore) -> None:
        self._start, self._store = start, store
        self._restarts = 0
        self._call: tuple[ray.ObjectRef[Any], str, tuple[Any, ...], float] | None = None
        self._progress_ref: ray.ObjectRef[Any] | None = None
        self.progress: tuple[str, float] = ("waiting", float("nan"))
        self.rows = 0
        self._dim_x = 0
        self.last_seconds: float | None = None
        self._actor = start()
        self._refill()

    @property
    def busy(self) -> bool:
        """Whether a training is under way."""
        return self._call is not None

    def add(self, rows: Sequence[Finished]) -> None:
        """Hands over finished simulations; those that only calibrate are left out."""
        rows = [row for row in rows if row.proposal.kind.trains]
        if not rows:
            return
        if self.rows == 0:
            # Until the first success x has no length; the failures before it are in the store.
            return self._refill()
        x = np.full((len(rows), self._dim_x), np.nan)
        for i, row in enumerate(rows):
            if row.outcome.status is Status.OK:
                x[i] = row.outcome.x
        densities = [row.proposal.log_density for row in rows]
        self._send(
            np.stack([row.proposal.theta for row in rows]),
            x,
            np.array([np.nan if d is None else d for d in densities]),
        )

    def update(self, alone: bool = False) -> None:
        """Starts a short training on everything handed over; `alone` where no simulation runs beside."""
        self._remote("update", alone)

    def finish(self, metadata: dict[str, Any]) -> None:
        """Starts the final training."""
        self._remote("finish", metadata)

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
                f"{self._store.directory}. Run the same command again to continue, with --debug for the traceback"
            ) from error
        self.last_seconds = time.monotonic() - started
        return result

    def stop(self) -> None:
        """Ends the trainer."""
        ray.kill(self._actor)

    def _remote(self, method: str, *arguments: Any) -> None:
        self._call = (getattr(self._actor, method).remote(*arguments), method, arguments, time.monotonic())

    def _send(self, theta: np.ndarray, x: np.ndarray, log_proposal: np.ndarray) -> None:
        self._actor.add.remote(theta, x, log_proposal)
        self.rows += len(theta)

    def _refill(self) -> None:
        theta, x, log_proposal = self._store_rows()
        self.rows, self._dim_x = 0, x.shape[1]
        if self._dim_x:
            self._send(theta, x, log_proposal)

    def _store_rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        table = self._store.read(["theta", "x", "status", "proposal", "proposal_log_density"])
        theta, x = split_columns(table)
        trains = np.array([ProposalKind(kind).trains for kind in table["proposal"].to_pylist()], dtype=bool)
        densities = table["proposal_log_density"].to_pylist()
        log_proposal = np.array([np.nan if d is None else d for d in densities])
        return theta[trains], x[trains], log_proposal[trains]

    def _restart(self, error: RayActorError) -> None:
        self._restarts += 1
        logger.warning("the trainer was lost (%s): starting a new one from the store", type(error).__name__)
        if self._restarts > _MAX_RESTARTS:
            raise TemperflowError(
                f"the trainer died {self._restarts} times; every simulation is in {self._store.directory}. Look for "
                "its cause (memory?) in Ray's logs, then run the same command again to continue"
            ) from error
        self._actor = self._start()
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
