"""How long a campaign has been simulating: the hours of a budget go on in the next process."""

from __future__ import annotations

__all__ = ["SimulatingTime"]

import math
from collections.abc import Callable

from .run_directory import RunDirectory

#: Seconds between two writings down.
_REMEMBER = 10.0


class SimulatingTime:
    """A stopwatch that is kept in the run directory.

    Arguments:
        run: Where it is kept.
        now: The clock in seconds.
    """

    def __init__(self, run: RunDirectory, now: Callable[[], float]) -> None:
        self.run, self.now = run, now
        self._before = float(run.records().get("simulating_seconds", 0.0))
        self._since: float | None = None
        self._written = -math.inf

    @property
    def seconds(self) -> float:
        """Spent on simulating so far, by earlier processes too."""
        return self._before + (0.0 if self._since is None else self.now() - self._since)

    def start(self) -> None:
        """Simulating begins."""
        self._since = self.now()

    def due(self) -> bool:
        """Whether it runs, and was last written down long ago."""
        return self._since is not None and self.now() - self._written > _REMEMBER

    def write(self) -> None:
        """Writes it down.

        Raises:
            OSError: There is no room for it.
        """
        self._written = self.now()
        self.run.update(simulating_seconds=self.seconds)

    def stop(self) -> None:
        """Simulating is over."""
        self._before, self._since = self.seconds, None
