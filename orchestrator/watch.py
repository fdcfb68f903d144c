"""How a campaign is doing, for its user: the progress line, the metrics on disk and in MLflow, figures now and then."""

from __future__ import annotations

__all__ = ["Watch"]

import contextlib
import json
import logging
import math
import time
from collections.abc import Iterator

from simulators.outcome import Status

from .config import CampaignConfig
from .display import Display, Progress
from .journal import append_line
from .loop import SimulationLoop
from .run_directory import RunDirectory
from .supervisor import TrainerSupervisor
from .system_metrics import SystemMetrics
from .tracked_training import TrackedTraining
from .tracking import Tracker

logger = logging.getLogger(__name__)

#: Metrics are written down this often, and never much more than 5,000 times in a doubling of the campaign's time.
_METRIC_SECONDS, _METRIC_SHARE = 2.0, 1 / 5000
_LOOK_SECONDS = 0.1
_FIGURE_SECONDS = 60.0
#: Simulations of so many seconds say how fast they are.
_RATE_SECONDS = 15.0


class Watch:
    """Looks at a campaign and tells; it changes nothing.

    Attributes:
        phase: What is being done, in a word.
        training: The trainer's phases in MLflow.

    Arguments:
        config, run: What is asked, and where metrics are written.
        loop, trainer, system: What is looked at.
        tracker, display: Who is told.
    """

    def __init__(
        self,
        config: CampaignConfig,
        run: RunDirectory,
        loop: SimulationLoop,
        trainer: TrainerSupervisor,
        system: SystemMetrics,
        tracker: Tracker,
        display: Display,
    ) -> None:
        self.config, self.run, self.loop, self.trainer, self.system = config, run, loop, trainer, system
        self.tracker, self.display, self.training = tracker, display, TrackedTraining(tracker)
        self.phase = "simulating"
        self._begin, self._seconds_before = time.monotonic(), loop.tally.seconds
        self._looked = self._last_metrics = self._last_figures = -math.inf
        self._window: list[tuple[float, int]] = []
        self._told: set[str] = set()

    def look(self) -> bool:
        """Tells how far it is, a few times a second however often it is called; returns whether it did."""
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return False
        self._looked = now
        done = self.loop.tally.spent
        self._window.append((now, done))
        self._window = [entry for entry in self._window if now - entry[0] < _RATE_SECONDS]
        since, before = self._window[0]
        span = now - since
        rate = (done - before) / span if span > 0.5 else 0.0
        total = self.config.budget.simulations
        left = (total - done) / rate if total is not None and rate > 0 else None
        training, loss = self.trainer.progress
        failed = done - self.loop.tally.counts[Status.OK]
        in_flight = self.loop.pool.num_pending
        self.look_at_training()
        self.display.show(Progress(self.phase, total, done, failed, in_flight, rate, training, loss, left))
        self.write_metrics()
        return True

    def look_at_training(self) -> None:
        """Tells MLflow what the trainer does."""
        trainer, final = self.trainer, self.phase == "training"
        self.training.look(trainer.training, final, self.loop.tally.trainable, trainer.progress, self.loop.tally.spent)

    @contextlib.contextmanager
    def dispensable(self, what: str) -> Iterator[None]:
        """Writes what the campaign can do without for a while; that it fails, as on a full disk, is told once."""
        try:
            yield
        except OSError as error:
            if what not in self._told:
                self._told.add(what)
                logger.warning("%s cannot be written now, which is tried again later: %s", what, error)

    def write_metrics(self, force: bool = False) -> None:
        """Writes metrics down and sends them, if it is time or must be."""
        now = time.monotonic()
        elapsed = now - self._begin
        if not force and now - self._last_metrics < max(_METRIC_SECONDS, elapsed * _METRIC_SHARE):
            return
        self._last_metrics = now
        counts, resources = self.loop.tally.counts, self.config.simulator.resources
        done = counts.total()
        pending, slots = self.loop.pool.num_pending, self.loop.pool.slots
        metrics = {
            "simulations": float(done),
            "failed": float(done - counts[Status.OK]),
            "in_flight": float(pending),
            "queue": float(max(0, pending - slots)),
            "slots": float(slots),
            "utilization": (self.loop.tally.seconds - self._seconds_before) / max(1e-9, slots * elapsed),
            "simulator_seconds": self.loop.tally.seconds,
            "cpu_seconds": self.loop.tally.seconds * resources.cpus,
            "gpu_seconds": self.loop.tally.seconds * resources.gpus,
            "seconds": elapsed,
            **{f"status/{status}": float(count) for status, count in counts.items()},
            **self.loop.choosing,
        }
        if self.loop.snapshot is not None:
            metrics |= self.loop.snapshot.metrics
        line = json.dumps({"time": time.time(), "phase": self.phase, **metrics})
        with self.dispensable("metrics"):
            append_line(self.run.metrics, line)
        self.tracker.metrics(metrics | self.system.poll(), step=done)
        if now - self._last_figures > max(_FIGURE_SECONDS, elapsed / 20) and done:
            self._last_figures = now
            self.tracker.figures(done)
