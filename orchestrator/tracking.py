"""What a campaign tells MLflow. It writes records on disk and goes on; another process delivers them.

See `docs/tracking.md` for what is logged, `orchestrator.courier` for the other process.
"""

from __future__ import annotations

__all__ = ["TrackedRun", "Tracker"]

import contextlib
import logging
import math
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from learners.saving import saved_digest

from . import tracking_records as records
from .courier_process import CourierProcess
from .tracking_journal import Journal, read_progress, records_after
from .tracking_names import as_name, as_part
from .tracking_records import CAMPAIGN, Record, RunStatus
from .tracking_trust import sync_command
from .tracking_uri import without_secret

logger = logging.getLogger(__name__)

#: What MLflow's database has room for.
_MAX_PARAM, _MAX_TAG, _MAX_AT_ONCE = 6000, 5000, 90


class TrackedRun:
    """One run of MLflow, as a campaign sees it. Every method returns at once.

    Arguments:
        tracker: The campaign's tracker.
        key: What the run is called in the journal.
    """

    def __init__(self, tracker: Tracker, key: str) -> None:
        self._tracker, self._key = tracker, key

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs parameters; nested mappings become dotted names. Repeating them is harmless."""
        for part in _parts(_flatten(values), _MAX_PARAM):
            self._write(records.Params(run=self._key, values=part))

    def tags(self, values: Mapping[str, Any]) -> None:
        """Sets tags."""
        for part in _parts(values, _MAX_TAG):
            self._write(records.Tags(run=self._key, values=part))

    def metrics(self, values: Mapping[str, float], step: int, at: float | None = None) -> None:
        """Logs metrics; those that are not finite are left out.

        Arguments:
            values: Name to value.
            step: Number of simulations so far.
            at: When, in seconds since 1970; now if None.
        """
        finite = {as_name(name): float(value) for name, value in values.items() if math.isfinite(value)}
        if finite:
            self._write(records.Metrics(run=self._key, step=step, time=_milliseconds(at), values=finite))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Logs a file of the run directory, in a folder of the run's artifacts."""
        self._write(records.Artifact(run=self._key, path=self._tracker.relative(path), folder=folder))

    def text(self, text: str, name: str) -> None:
        """Logs a text as a file."""
        self._write(records.Text(run=self._key, text=text, name=name))

    def end(self, status: RunStatus) -> None:
        """Ends the run."""
        self._write(records.End(run=self._key, status=status, time=_milliseconds()))

    def _write(self, record: Record) -> None:
        self._tracker.write(record)


class Tracker(TrackedRun):
    """The run of a campaign; nested runs come from it.

    Arguments:
        directory: Run directory; it has a campaign already.
        uri: Tracking server or store, with credentials if it has them.
        experiment: Experiment's name.
        name: Name of the run.
        enabled: Whether to track at all.
    """

    def __init__(self, directory: Path, uri: str, experiment: str, name: str, enabled: bool = True) -> None:
        super().__init__(self, CAMPAIGN)
        self._directory, self._experiment = directory, experiment
        self._server, self._folder = without_secret(uri), directory / "tracking"
        self._journal: Journal | None = None
        if enabled:
            self._journal = Journal(self._folder)
            self._begin(CAMPAIGN, name, "campaign")
            self._courier = CourierProcess(directory, uri)

    @property
    def link(self) -> dict[str, str] | None:
        """Address of the server, without its secrets, and id of the run there; None while there is none."""
        run_id = read_progress(self._folder, self._server).runs.get(CAMPAIGN)
        return None if run_id is None else {"uri": self._server, "run_id": run_id}

    @contextlib.contextmanager
    def nested(self, key: str, name: str, kind: str) -> Iterator[TrackedRun]:
        """A nested run for the time of a block; it fails with it.

        Arguments:
            key: What it is called in the journal: the same key continues the same run, also in the next process.
            name: Its name.
            kind: Value of its tag `temperflow`.
        """
        run = self.begin(key, name, kind)
        status: RunStatus = "FAILED"
        try:
            yield run
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            run.end(status)

    def begin(self, key: str, name: str, kind: str) -> TrackedRun:
        """A nested run; see `nested`."""
        self._begin(key, name, kind)
        return TrackedRun(self, key)

    def dataset(self, location: str, digest: str, rows: int) -> None:
        """Logs where the simulations are, a folder or a URI, and what they are."""
        uri = location if "://" in location else Path(location).resolve().as_uri()
        self.write(records.Dataset(uri=uri, digest=digest, rows=rows))
        self.tags({"simulations.uri": uri, "simulations.digest": digest, "simulations.rows": rows})

    def figures(self, step: int) -> None:
        """Has the campaign drawn as it is now."""
        self.write(records.Figures(step=step, time=_milliseconds()))

    def model(self, directory: Path, name: str) -> None:
        """Registers the posterior saved in `directory`, a folder of the run directory, under a name."""
        self.write(records.Model(directory=self.relative(directory), digest=saved_digest(directory), name=name))

    def write(self, record: Record) -> None:
        """Writes a record into the journal."""
        if self._journal is not None:
            self._journal.append(record)

    def relative(self, path: Path) -> str:
        """A path as the journal has it, so that a run directory can be moved; what lies outside is never delivered."""
        path, directory = path.absolute(), self._directory.absolute()
        assert path.is_relative_to(directory), f"{path} is outside {directory}"
        return str(path.relative_to(directory))

    def close(self, status: RunStatus, patience: float) -> None:
        """Ends the run, and waits at most `patience` seconds for the delivery. What is left remains on disk."""
        if self._journal is None:
            return
        self.end(status)
        self._journal.close()
        self._journal = None
        self._courier.finish(patience)
        left = sum(1 for _ in records_after(self._folder, read_progress(self._folder, self._server).offset))
        if left:
            logger.warning(
                "%d records for MLflow at %s are kept in %s; `%s` delivers them",
                left,
                self._server,
                self._folder,
                sync_command(self._directory, self._server),
            )

    def _begin(self, key: str, name: str, kind: str) -> None:
        experiment, tags = self._experiment, {"temperflow": kind}
        self.write(records.Begin(run=key, name=name, experiment=experiment, time=_milliseconds(), tags=tags))


def _milliseconds(at: float | None = None) -> int:
    return int(1000 * (time.time() if at is None else at))


def _parts(values: Mapping[str, Any], longest: int) -> Iterator[dict[str, str]]:
    """Names and values that MLflow takes, in portions that it takes at once."""
    entries = ((as_name(name), str(value)[:longest]) for name, value in values.items())
    while part := dict(islice(entries, _MAX_AT_ONCE)):
        yield part


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{as_part(str(key))}.")
        else:
            flat[f"{prefix}{as_part(str(key))}"] = value
    return flat
