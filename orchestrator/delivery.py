"""Delivery of a journal's records to MLflow: in order, once, and again only where nobody knows.

After a request without an answer, nobody knows whether the server has the records. They are sent again, and this
changes nothing: MLflow's database keeps a metric once for each key, timestamp, step and value, parameters, tags and
inputs are set to what they are, files are written over, and runs and models are looked for before they are made.
"""

from __future__ import annotations

__all__ = ["Delivery", "Unavailable"]

import getpass
import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import tracking_records as records
from .tracking_journal import Progress, journal_id, read_progress, records_after, write_progress
from .tracking_records import CAMPAIGN, Record
from .tracking_uri import redacted, without_secret

if TYPE_CHECKING:
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

#: What the server takes in one request.
_MAX_METRICS, _MAX_ENTRIES = 1000, 100
#: Answers that will be the same next time. All others may change: no connection, no credentials, an overloaded server.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "RESOURCE_ALREADY_EXISTS", "NOT_IMPLEMENTED"}
_REFUSED_STATUS = {400, 405, 409, 410, 411, 413, 414, 415, 422}
#: How often a record is tried that fails alone.
_MAX_TRIES = 10
#: Waiting is done by whoever delivers; these keep a server that is out from holding up a request for minutes.
_PATIENCE = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
_KEY_TAG = "temperflow.key"


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
        self._client: Any = None
        self._tries = 0

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the campaign's run, once it exists."""
        return self.progress.runs.get(CAMPAIGN)

    def deliver(self, on_taken: Callable[[], None] = lambda: None) -> int:
        """Delivers what is in the journal; returns the number of records.

        Arguments:
            on_taken: Called after each request.

        Raises:
            Unavailable: The server does not take them now. Those that it has are remembered.
        """
        delivered = 0
        batch: list[tuple[Record, int]] = []
        for record, offset in records_after(self.folder, self.progress.offset):
            if self._client is None and self._connect():
                return delivered + self.deliver(on_taken)
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
        if self.progress.open:
            if self._client is None:
                self._connect()
            self._try(lambda: self._end_all("KILLED", int(1000 * time.time())))
            write_progress(self.folder, self.server, self.progress)

    def _connect(self) -> bool:
        """Returns whether all must be delivered anew, because the server has lost what it had."""
        for name, value in _PATIENCE.items():
            os.environ.setdefault(name, value)
        import mlflow
        from mlflow.exceptions import MlflowException

        def alive() -> bool:
            mlflow.set_tracking_uri(self.uri)
            client = mlflow.MlflowClient(self.uri)
            if self.run_id is None:
                client.search_experiments(max_results=1)
            else:
                try:
                    if client.get_run(self.run_id).info.lifecycle_stage != "active":
                        return False
                except MlflowException as error:
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
                    return False
            self._client = client
            return True

        try:
            if alive():
                return False
        except Exception as error:
            raise Unavailable(redacted(_first_line(error), self.uri)) from error
        self.progress = Progress()
        return True

    def _take(self, batch: Sequence[tuple[Record, int]]) -> int:
        """Delivers records that go into one request; one that is refused for good is left out, with a warning."""
        try:
            self._try(lambda: self._send([record for record, _ in batch]))
        except _RefusedError as error:
            if len(batch) > 1:
                return sum(self._take([entry]) for entry in batch)
            logger.warning("MLflow refuses a record of kind '%s': %s", batch[0][0].kind, error)
        self._tries = 0
        self.progress.offset = batch[-1][1]
        write_progress(self.folder, self.server, self.progress)
        return len(batch)

    def _try(self, request: Callable[[], None]) -> None:
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            request()
        except Unavailable:
            raise
        except Exception as error:
            if isinstance(error, MlflowException):
                temporary = error.error_code not in _REFUSALS
            elif (response := getattr(error, "response", None)) is not None:
                temporary = response.status_code not in _REFUSED_STATUS
            else:
                temporary = isinstance(error, OSError | SQLAlchemyError)
            reason = redacted(_first_line(error), self.uri)
            # What is refused because the run was deleted is not lost: the next process delivers all anew.
            if not self._run_is_active():
                raise Unavailable(reason) from error
            # A server that answers everything else, and this never, is not out.
            self._tries += 1
            if temporary and self._tries < _MAX_TRIES:
                raise Unavailable(reason) from error
            self._tries = 0
            raise _RefusedError(reason) from error

    def _run_is_active(self) -> bool:
        try:
            return self.run_id is None or bool(self._client.get_run(self.run_id).info.lifecycle_stage == "active")
        except Exception:
            return False

    def _send(self, batch: list[Record]) -> None:
        match batch[0]:
            case records.Begin() as record:
                self._begin(record)
            case records.End() as record:
                self._end(record)
            case records.Metrics() | records.Params() | records.Tags():
                self._log_batch(batch)
            case record:
                if (run_id := self.progress.runs.get(record.run)) is not None:
                    self._log(record, run_id)

    def _begin(self, record: records.Begin) -> None:
        run_id = self.progress.runs.get(record.run)
        if run_id is None:
            run_id = self._found(record) or self._created(record)
        self._client.update_run(run_id, "RUNNING")
        if record.run == CAMPAIGN:
            # What a killed process left open is over.
            self._end_all("KILLED", record.time)
        self.progress.runs[record.run] = run_id
        if record.run not in self.progress.open:
            self.progress.open.append(record.run)

    def _found(self, record: records.Begin) -> str | None:
        """A run that was made by a request whose answer was lost."""
        experiment = self._experiment(record.experiment)
        query = f"tags.`{_KEY_TAG}` = '{self._id}/{record.run}'"
        runs: list[Run] = self._client.search_runs([experiment], query, max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _created(self, record: records.Begin) -> str:
        tags = {
            "mlflow.user": _user(),
            "mlflow.source.type": "LOCAL",
            "mlflow.source.name": "temperflow",
            _KEY_TAG: f"{self._id}/{record.run}",
            **record.tags,
        }
        if record.run != CAMPAIGN:
            tags["mlflow.parentRunId"] = self.progress.runs[CAMPAIGN]
        run = self._client.create_run(self._experiment(record.experiment), record.time, tags, record.name)
        return str(run.info.run_id)

    def _experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self._client.create_experiment(name, _artifact_location(self.uri, name)))
            except MlflowException as error:
                # Another campaign was a little earlier.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self._client.get_experiment_by_name(name)
        if experiment.lifecycle_stage != "active":
            raise Unavailable(f"the experiment '{name}' was deleted; restore it, or set `tracking.experiment`")
        return str(experiment.experiment_id)

    def _end(self, record: records.End) -> None:
        if record.run == CAMPAIGN:
            self._end_all(record.status, record.time)
        else:
            self._end_one(record.run, record.status, record.time)

    def _end_all(self, status: str, end: int) -> None:
        for key in reversed(self.progress.open.copy()):
            self._end_one(key, status, end)

    def _end_one(self, key: str, status: str, end: int) -> None:
        if key in self.progress.open:
            self._client.set_terminated(self.progress.runs[key], status, end)
            self.progress.open.remove(key)

    def _log_batch(self, batch: list[Record]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics: dict[str, list[Metric]] = defaultdict(list)
        params: dict[str, dict[str, str]] = defaultdict(dict)
        tags: dict[str, dict[str, str]] = defaultdict(dict)
        for record in batch:
            if (run_id := self.progress.runs.get(record.run)) is None:
                continue
            if isinstance(record, records.Metrics):
                metrics[run_id] += [Metric(k, v, record.time, record.step) for k, v in record.values.items()]
            elif isinstance(record, records.Params):
                params[run_id] |= record.values
            elif isinstance(record, records.Tags):
                tags[run_id] |= record.values
        for run_id in {**metrics, **params, **tags}:
            if params[run_id]:
                # A parameter cannot change in MLflow; a continued campaign's configuration can, in part.
                known = self._client.get_run(run_id).data.params
                changed = {k: v for k, v in params[run_id].items() if known.get(k, v) != v}
                params[run_id] = {k: v for k, v in params[run_id].items() if k not in known}
                tags[run_id] |= {f"changed.{k}": v for k, v in changed.items()}
            self._client.log_batch(
                run_id,
                metrics[run_id],
                [Param(k, v) for k, v in params[run_id].items()],
                [RunTag(k, v) for k, v in tags[run_id].items()],
                synchronous=True,
            )

    def _log(self, record: Record, run_id: str) -> None:
        match record:
            case records.Text():
                self._client.log_text(run_id, record.text, record.name)
            case records.Artifact():
                if (path := self.directory / record.path).is_file():
                    self._client.log_artifact(run_id, str(path), record.folder)
            case records.Dataset():
                self._log_dataset(record, run_id)
            case records.Figures():
                self._log_figures(record, run_id)
            case records.Model():
                from .registry import register

                register(self._client, self.directory, run_id, record)
            case _:
                raise AssertionError(record)

    def _log_dataset(self, record: records.Dataset, run_id: str) -> None:
        from mlflow.data.dataset_source_registry import resolve_dataset_source
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = resolve_dataset_source(record.uri)
        profile = json.dumps({"num_rows": record.rows})
        digest = record.digest[:32]
        dataset = Dataset("simulations", digest, source._get_source_type(), source.to_json(), profile=profile)
        tags = [InputTag("mlflow.data.context", "simulations"), InputTag("rows", str(record.rows))]
        self._client.log_inputs(run_id, [DatasetInput(dataset, tags)])

    def _log_figures(self, record: records.Figures, run_id: str) -> None:
        from PIL import Image

        from .live_figures import drawn

        for name, path in drawn(self.folder, record.step).items():
            # The names that MLflow gives to images say key and time.
            there = [Path(entry.path).name for entry in self._client.list_artifacts(run_id, "images")]
            if not any(entry.startswith(name) and str(record.time) in entry for entry in there):
                with Image.open(path) as image:
                    self._client.log_image(run_id, image, key=name, step=record.step, timestamp=record.time)


class _RefusedError(Exception):
    """The server will never take this."""


def _together(batch: Sequence[Record]) -> bool:
    """Whether records go into one request."""
    if not all(isinstance(record, records.Metrics | records.Params | records.Tags) for record in batch):
        return False
    metrics = sum(len(record.values) for record in batch if isinstance(record, records.Metrics))
    entries = sum(len(record.values) for record in batch if isinstance(record, records.Params | records.Tags))
    return metrics + entries <= _MAX_METRICS and entries <= _MAX_ENTRIES


def _artifact_location(uri: str, experiment: str) -> str | None:
    """Files of a local store lie beside it, whatever folder later commands are started from."""
    if not uri.startswith("sqlite:///"):
        return None
    folder = Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve().parent
    return (folder / "mlartifacts" / experiment).as_uri()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:400] if lines else type(error).__name__


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
