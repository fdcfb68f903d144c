"""Each training of the network is a run of its own in MLflow, nested in the campaign's."""

from __future__ import annotations

__all__ = ["TrackedTraining"]

import math
import time
from collections.abc import Mapping

from .tracking import TrackedRun, Tracker


class TrackedTraining:
    """Follows the trainer from one look to the next.

    Arguments:
        tracker: The campaign's.
    """

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._run: TrackedRun | None = None
        self._number: int | None = None
        self._last: tuple[str, float] = ("", math.nan)
        self._began = 0.0

    def look(self, training: int | None, final: bool, rows: int, progress: tuple[str, float], step: int) -> None:
        """Tells what has changed.

        Arguments:
            training: Number of the training under way, None if there is none.
            final: Whether it is the last one of the campaign.
            rows: Simulations that may be trained on.
            progress: What is being trained, and its latest held-out loss in nats; NaN while nothing is.
            step: Simulations so far.
        """
        if training != self._number:
            self.end({}, step)
        if training is None:
            return
        if self._run is None:
            self._number = training
            key, name = ("final", "final training") if final else ("update", "training")
            self._began = time.monotonic()
            self._run = self._tracker.begin(f"{key}-{rows:09d}", f"{name}, {rows} simulations", "training")
            self._run.params({"simulations": rows, "final": final})
            self._last = progress  # of the training before
        # NaN differs from itself, and says nothing.
        if progress != self._last and not math.isnan(progress[1]):
            self._last = progress
            part, loss = progress
            self._run.metrics({f"{part}_loss": loss}, step)

    def end(self, results: Mapping[str, float], step: int) -> None:
        """Ends the training's run, if there is one."""
        if self._run is not None:
            self._run.metrics({**results, "seconds": time.monotonic() - self._began}, step)
            self._run.end("FINISHED")
            self._run = self._number = None
