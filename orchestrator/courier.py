"""The process that talks to MLflow for a campaign: `python -m orchestrator.courier RUN_DIRECTORY`.

The campaign writes records into its journal and goes on. This process, of low priority, delivers them about once a
second (less often to a server that is slow), draws the figures of the running campaign, and waits while the server is
out. It ends when it is told to on its standard input, or when the campaign's process is gone. The server's address
comes in `MLFLOW_TRACKING_URI`: a command line can be read by anyone on the machine. What it has to tell goes to
standard output, a line of JSON each.
"""

from __future__ import annotations

__all__ = ["DELIVERED", "REFUSED", "UNAVAILABLE", "last_pause", "locked", "pause"]

import contextlib
import json
import logging
import os
import random
import select
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from simulators.errors import TrackingError

from .delivery import Delivery, Unavailable
from .file_lock import lock
from .tracking_journal import records_after
from .tracking_records import Figures
from .tracking_uri import redacted

logger = logging.getLogger(__name__)

#: What is told: the server takes records, it is out (with the reason), or a record was left out (with the reason).
DELIVERED, UNAVAILABLE, REFUSED = "delivered", "unavailable", "refused"
_SECONDS = 1.0
_MAX_BACKOFF = 15.0
#: Failures in a row beyond which pauses do not grow; a server may be out for days.
_MAX_DOUBLINGS = 10
#: Pauses are so many times as long as deliveries. MLflow's server has 15 connections to its database, needs two to take
#: metrics, and stands still for half a minute when as many clients hold one each and wait for another: campaigns must
#: not all ask at once, dozens of them neither.
_RESERVE = 4.0
#: A batch system may end dozens of campaigns at the same moment. Their last words are spread over as many times what a
#: delivery takes, and at most so many seconds.
_SPREAD, _MAX_SPREAD = 16.0, 5.0
#: How often a server that is out is asked again at the end.
_LAST_TRIES = 3


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Makes sure that only one process delivers the records of a run directory.

    Raises:
        TrackingError: Another one does.
    """
    with (directory / "tracking" / ".lock").open("w") as file:
        if not lock(file):
            raise TrackingError(f"another process delivers the records of {directory}; wait for it to end")
        yield


def pause(seconds: float, failures: int) -> float:
    """Seconds to the next delivery, when the server took `seconds` for the last one, after `failures` in vain.

    Not the same for all campaigns that have to wait for the same reason.
    """
    backoff = _SECONDS * 2.0 ** min(failures, _MAX_DOUBLINGS)
    return min(_MAX_BACKOFF, max(backoff, _RESERVE * seconds)) * random.uniform(0.8, 1.2)


def last_pause(seconds: float) -> float:
    """Seconds to the last delivery, when the server took `seconds` for the one before; different for each campaign."""
    return random.uniform(0.0, min(_MAX_SPREAD, _SPREAD * seconds))


class _Courier:
    def __init__(self, directory: Path, uri: str) -> None:
        self.delivery = Delivery(directory, uri)
        self._parent = os.getppid()
        self._drawn = self.delivery.progress.offset
        self._failures = 0
        self._leave = self._alone = False

    def work(self) -> None:
        while not self._leave:
            self._wait(pause(self.delivery.lasted, self._failures))
            if not self._leave:
                self._draw()
                self._deliver()
        # What a short campaign asked for while the first delivery was under way.
        self._draw()
        if not self._failures:
            time.sleep(last_pause(self.delivery.lasted))
        for attempt in range(_LAST_TRIES):
            if self._deliver():
                break
            if attempt < _LAST_TRIES - 1:
                time.sleep(_SECONDS / 2)

    def _wait(self, seconds: float) -> None:
        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        if ready:
            # A line says that all records are written; an end without one, that the campaign's process is gone.
            self._alone = not sys.stdin.readline()
            self._leave = True
        elif os.getppid() != self._parent:
            self._alone = self._leave = True

    def _deliver(self) -> bool:
        """Whether everything is delivered."""
        try:
            # A figure that was asked for meanwhile is drawn first.
            self.delivery.deliver(self._taken, None if self._leave else self._drawn)
            if self._alone:
                self.delivery.abandon()
        except Unavailable as error:
            self._failures += 1
            _tell(UNAVAILABLE, str(error))
            return False
        self._failures = 0
        _tell(DELIVERED, "")
        return True

    def _taken(self) -> None:
        """The server has taken something: it is not out. Looks whether the campaign has ended meanwhile."""
        if self._failures:
            self._failures = 0
            _tell(DELIVERED, "")
        if not self._leave:
            self._wait(0.0)

    def _draw(self) -> None:
        """Draws what is asked for, the latest only: it shows the campaign as it is now."""
        asked = None
        for record, offset in records_after(self.delivery.folder, self._drawn):
            self._drawn = offset
            if isinstance(record, Figures):
                asked = record
        if asked is not None:
            from .live_figures import draw

            try:
                draw(self.delivery.directory, self.delivery.folder, asked.step)
            except Exception as error:
                # A picture is never worth the records.
                logger.warning("no figures at %d simulations: %r", asked.step, error)


class _Telling(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _tell(REFUSED, record.getMessage())


def _tell(event: str, text: str) -> None:
    # Whoever listened may be gone.
    with contextlib.suppress(OSError, ValueError):
        print(json.dumps({"event": event, "text": text}), file=sys.__stdout__, flush=True)


def main() -> None:
    """Runs until the campaign ends."""
    # Ctrl-C, and a batch system's SIGTERM to all processes, end the campaign; then there is a last word to deliver.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(10)
    # MLflow prints addresses of runs; once nobody listens any more, that would be an error.
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the end)
    logging.getLogger("orchestrator").addHandler(_Telling(logging.WARNING))
    logging.getLogger("orchestrator").propagate = False
    directory, uri = Path(sys.argv[1]), os.environ["MLFLOW_TRACKING_URI"]
    try:
        with locked(directory):
            _Courier(directory, uri).work()
    except Exception as error:
        _tell(UNAVAILABLE, redacted(f"{type(error).__name__}: {error}", uri))
        sys.exit(1)


if __name__ == "__main__":
    main()
