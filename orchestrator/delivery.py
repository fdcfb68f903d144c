"""Delivery of a journal's records to MLflow: in order, once, and again only where nobody knows.

After a request without an answer, nobody knows whether the server has the records. They are sent again, and this
changes nothing: MLflow's database keeps a metric once for each key, timestamp, step and value, parameters, tags and
inputs are set to what they are, files are written over, and runs and models are looked for before they are made.
"""

from __future__ import annotations

__all__ = ["Delivery", "Unavailable"]

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from . import tracking_records as records
from .tracking_journal import Progress, journal_id, read_progress, records_after, write_progress
from .tracking_records import CAMPAIGN, Record
from .tracking_uri import redacted, without_secret

if TYPE_CHECKING:
    from .mlflow_runs import MlflowRuns

logger = logging.getLogger(__name__)

#: What the server takes in one request.
_MAX_METRICS, _MAX_ENTRIES = 1000, 100
#: Answers that will be the same next time. All others may change: no connection, no credentials, an overloaded server.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "NOT_IMPLEMENTED"}
_REFUSED_STATUS = {400, 405, 409, 410, 411, 413, 414, 415, 422}
#: How often a record is tried that fails alone.
_MAX_TRIES = 10
#: Waiting is done by whoever delivers; these keep a server that is out from holding up a request for minutes. MLflow's
#: own waits for a connection to its database for 30 s, and then says so.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "35",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}


class Unavailable(Exception):  # noqa: N818 (a state of the server, not a mistake)
    """The server does not take records now; its message has no secrets."""


class Delivery:
    """Delivers the records of one run directory to one server.

    Arguments:
        directory: Run directory.
        uri: Tracking server or store, with credentials if it has them.

    Raises:
        RunDirectoryError: There is no journal that can be read.
    """

    def __init__(self, directory: Path, uri: str) -> None:
        self.directory, self.uri = directory, uri
        self.folder = directory / "tracking"
        self.server = without_secret(uri)
        self._id = journal_id(self.folder)
        self.progress = read_progress(self.folder, self.server)
        #: Seconds that the server took for metrics, parameters and tags in the last delivery.
        self.lasted = 0.0
        self._runs: MlflowRuns | None = None
        self._tries = 0

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the campaign's run, once it exists."""
        return self.progress.runs.get(CAMPAIGN)

    def deliver(self, on_taken: Callable[[], None] = lambda: None, until: int | None = None) -> int:
        """Delivers what is in the journal; returns the number of records.

        Arguments:
            on_taken: Called after each request.
            until: Byte of the journal up to which to deliver, None for its end.

        Raises:
            Unavailable: The server does not take them now. Those that it has are remembered.
        """
        delivered = 0
        self.lasted = 0.0
        batch: list[tuple[Record, int]] = []
        for record, offset in records_after(self.folder, self.progress.offset):
            if until is not None and offset > until:
                break
            if self._runs is None and self._connect():
                return delivered + self.deliver(on_taken, until)
            if batch and not _together([*(r for r, _ in batch), record]):
                delivered += self._take(batch)
                batch = []
                on_taken()
            batch.append((record, offset))
        return delivered + (self._take(batch) if batch else 0)

    def abandon(self) -> None:
        """Ends as `KILLED` what is open: the process that had it open is gone.

        Raises:
            Unavailable: As `deliver`.
        """
        if self.progress.open and (self._runs is not None or not self._connect()):
            self._try(lambda runs: runs.end_all("KILLED", int(1000 * time.time())))
            write_progress(self.folder, self.server, self.progress)

    def _connect(self) -> bool:
        """Returns whether all must be delivered anew, because the server has lost what it had."""
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        try:
            import mlflow

            from .mlflow_runs import MlflowRuns

            mlflow.set_tracking_uri(self.uri)
            client = mlflow.MlflowClient(self.uri)
            runs = MlflowRuns(client, self.directory, self._id, self.progress)
            if self.run_id is None:
                client.search_experiments(max_results=1)
            elif not runs.alive():
                self.progress = Progress()
                return True
        except Exception as error:
            raise Unavailable(redacted(_first_line(error), self.uri)) from error
        self._runs = runs
        return False

    def _take(self, batch: Sequence[tuple[Record, int]]) -> int:
        """Delivers records that go into one request; one that is refused for good is left out, with a warning."""
        try:
            self._send([record for record, _ in batch])
        except _RefusedError as error:
            if len(batch) > 1:
                return sum(self._take([entry]) for entry in batch)
            logger.warning("MLflow refuses a record of kind '%s': %s", batch[0][0].kind, error)
        self._tries = 0
        self.progress.offset = batch[-1][1]
        write_progress(self.folder, self.server, self.progress)
        return len(batch)

    def _send(self, batch: Sequence[Record]) -> None:
        begin = time.monotonic()
        try:
            self._try(lambda runs: runs.send(batch))
        finally:
            if _is_small(batch[0]):
                self.lasted += time.monotonic() - begin

    def _try(self, request: Callable[[MlflowRuns], None]) -> None:
        assert self._runs is not None
        try:
            request(self._runs)
        except Exception as error:
            reason = redacted(_first_line(error), self.uri)
            if not self._has_the_run():
                raise Unavailable(reason) from error
            if _is_overload(error):
                raise Unavailable(reason) from error
            # A server that answers everything else, and this never, is not out.
            self._tries += 1
            if _is_temporary(error) and self._tries < _MAX_TRIES:
                raise Unavailable(reason) from error
            self._tries = 0
            raise _RefusedError(reason) from error

    def _has_the_run(self) -> bool:
        """Whether the server answers, and has what is known to be there."""
        try:
            return self._runs is not None and self.run_id is not None and self._runs.alive()
        except Exception:
            return False


class _RefusedError(Exception):
    """The server will never take this."""


def _is_temporary(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if isinstance(error, MlflowException):
        return error.error_code not in _REFUSALS
    if (response := getattr(error, "response", None)) is not None:
        return response.status_code not in _REFUSED_STATUS
    return isinstance(error, OSError | SQLAlchemyError)


def _is_overload(error: Exception) -> bool:
    """Whether the server had no connection to its database left, which it calls a bad request."""
    return "QueuePool limit" in str(error)


def _is_small(record: Record) -> bool:
    return isinstance(record, records.Metrics | records.Params | records.Tags)


def _together(batch: Sequence[Record]) -> bool:
    """Whether records go into one request."""
    if not all(map(_is_small, batch)):
        return False
    metrics = sum(len(record.values) for record in batch if isinstance(record, records.Metrics))
    entries = sum(len(record.values) for record in batch if isinstance(record, records.Params | records.Tags))
    return metrics + entries <= _MAX_METRICS and entries <= _MAX_ENTRIES


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:400] if lines else type(error).__name__
