"""Makes rows durable beside the campaign's loop, which never waits for a disk or a server."""

from __future__ import annotations

__all__ = ["StoreWriter"]

import functools
import logging
import threading
import time
from collections import deque

from simulators.errors import RunDirectoryError, TemperflowError

from .proposal import Finished
from .store import SimulationStore

logger = logging.getLogger(__name__)

# A write is followed by a pause of so many times its own length, so that it takes about 5 % of the time; but of at most
# and at least so many seconds, and by none while so many rows wait.
_PAUSE = 20.0
_LONGEST_PAUSE = 0.5
_SHORTEST_PAUSE = 0.4
_URGENT_ROWS = 10_000
_MOST_ROWS = 50_000
_RETRY_SECONDS = 1.0
_MANY_FILES = 200
_UNTIDY_FILES = 8


class StoreWriter:
    """One thread that appends what it is given to a store; one file at a time takes all that has come meanwhile.

    While writing fails, rows stay in memory, and it is tried again until it works.

    Arguments:
        store: Where rows go. Nobody else may write there meanwhile.
    """

    def __init__(self, store: SimulationStore) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._queue: deque[Finished] = deque()
        self._writing: list[Finished] = []
        self._committed: list[Finished] = []
        self._put = self._durable = 0
        self._problem: str | None = None
        self._flush_to = 0
        self._closing = self._abandoned = self._merging = False
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Rows that are not yet durable."""
        with self._changed:
            return self._put - self._durable

    @property
    def unwritten(self) -> list[Finished]:
        """What has been put and is not yet durable."""
        with self._changed:
            return [*self._writing, *self._queue]

    @property
    def problem(self) -> str | None:
        """Why writing fails at present, with the remedy."""
        with self._changed:
            return self._problem

    def put(self, rows: Finished) -> None:
        """Takes rows; returns at once."""
        if not len(rows):
            return
        with self._changed:
            assert not self._closing, "rows after close"
            before = self._put - self._durable
            self._queue.append(rows)
            self._put += len(rows)
            # The thread sleeps until rows come or its pause is over: to wake it for each row would cost more than it.
            if before == 0 or before < _URGENT_ROWS <= before + len(rows):
                self._changed.notify_all()

    def committed(self) -> list[Finished]:
        """What has become durable since the last call, in the order in which it was put."""
        with self._changed:
            done, self._committed = self._committed, []
        return done

    def flush(self, timeout: float | None = None) -> bool:
        """Waits until all rows put so far are durable; False if they are not after `timeout` seconds."""
        with self._changed:
            target = self._flush_to = self._put
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._durable >= target, timeout)

    def close(self, patience: float = 10.0) -> None:
        """Makes all rows durable, tidies the store if it is worth it, and ends the thread.

        Arguments:
            patience: Seconds without any progress after which it gives up; a merge under way is awaited.

        Raises:
            RunDirectoryError: Rows that could not be written are lost; says how many, and why.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            while self._durable < self._put:
                # Rows wait for a merge, however long it takes: that the store is slow does not say that it is out.
                limit = None if self._merging else patience
                moved = functools.partial(self._moved, self._durable, self._merging)
                if not self._changed.wait_for(moved, limit):
                    break
            lost, self._abandoned = self._put - self._durable, True
            self._changed.notify_all()
        if lost:
            raise RunDirectoryError(
                f"{lost} simulations could not be stored: {self._problem or f'no answer for {patience:g} s'}. All "
                "others are kept; run the same command again to continue"
            )
        self._thread.join(patience)

    def _moved(self, durable: int, merging: bool) -> bool:
        return self._durable > durable or self._merging != merging

    def _run(self) -> None:
        small = self._compact(self._count_small(), _MANY_FILES)
        pause_until = 0.0
        while (parts := self._take(pause_until)) is not None:
            begin = time.monotonic()
            while not self._append(parts):
                with self._changed:
                    if self._changed.wait_for(lambda: self._abandoned, _RETRY_SECONDS):
                        return
            end = time.monotonic()
            pause_until = end + min(max(_PAUSE * (end - begin), _SHORTEST_PAUSE), _LONGEST_PAUSE)
            with self._changed:
                self._problem = None
                self._durable += sum(map(len, parts))
                self._committed += parts
                self._writing = []
                self._changed.notify_all()
            small = self._compact(small + 1, _MANY_FILES)
        self._compact(small, _UNTIDY_FILES)

    def _take(self, pause_until: float) -> list[Finished] | None:
        """Waits for the next rows to be written; None after the last."""
        with self._changed:
            while not self._queue or not self._urgent:
                if not self._queue:
                    if self._closing:
                        return None
                    self._changed.wait()
                else:
                    pause = pause_until - time.monotonic()
                    if pause <= 0:
                        break
                    self._changed.wait(pause)
            parts, rows = [], 0
            while self._queue and rows < _MOST_ROWS:
                parts.append(self._queue.popleft())
                rows += len(parts[-1])
            self._writing = parts
            return parts

    @property
    def _urgent(self) -> bool:
        return self._closing or self._put - self._durable >= _URGENT_ROWS or self._flush_to > self._durable

    def _append(self, parts: list[Finished]) -> bool:
        try:
            self._store.append(Finished.concatenate(parts))
        except Exception as error:  # Whatever it is, the rows are kept and the thread lives.
            with self._changed:
                if self._problem is None:
                    logger.warning("%d simulations wait to be stored: %s", self._put - self._durable, error)
                self._problem = str(error) if isinstance(error, TemperflowError) else f"{type(error).__name__}: {error}"
            return False
        return True

    def _count_small(self) -> int:
        try:
            return self._store.small_files()
        except Exception:  # Appending will say so.
            return 0

    def _compact(self, small: int, limit: int) -> int:
        """Merges small files if there are more than `limit`; returns how many there are."""
        with self._changed:
            # In the end, rows that wait come first.
            if small <= limit or (self._closing and self._queue):
                return small
            self._merging = True
        try:
            self._store.compact()
            return self._store.small_files()
        except Exception as error:
            logger.warning("small files could not be merged, which is tried again later: %s", error)
            return 0
        finally:
            with self._changed:
                self._merging = False
                self._changed.notify_all()
