"""What a record becomes in MLflow. All that is done here may be done twice: then nothing changes."""

from __future__ import annotations

__all__ = ["MlflowRuns"]

import getpass
import json
import logging
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from mlflow import MlflowClient
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from . import tracking_records as records
from .tracking_journal import Progress
from .tracking_names import as_part
from .tracking_records import CAMPAIGN, Record

logger = logging.getLogger(__name__)

#: Tells our runs from all others, and from each other.
_KEY_TAG = "temperflow.key"


class MlflowRuns:
    """The runs of one campaign on one server.

    Arguments:
        client: Client of the server.
        directory: Run directory.
        identity: What tells this campaign's runs from all others.
        progress: The runs that are there already; kept up to date.
    """

    def __init__(self, client: MlflowClient, directory: Path, identity: str, progress: Progress) -> None:
        self._client, self._directory, self._id, self._progress = client, directory, identity, progress

    def alive(self) -> bool:
        """Whether the campaign's run is there; the server's errors are raised."""
        try:
            run = self._client.get_run(self._progress.runs[CAMPAIGN])
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return bool(run.info.lifecycle_stage == "active")

    def send(self, batch: Sequence[Record]) -> None:
        """Records of metrics, parameters and tags, or one record of another kind."""
        match batch[0]:
            case records.Begin() as record:
                self._begin(record)
            case records.End() as record:
                self._end(record)
            case records.Metrics() | records.Params() | records.Tags():
                self._log_batch(batch)
            case record:
                if (run_id := self._progress.runs.get(record.run)) is not None:
                    self._log(record, run_id)

    def _begin(self, record: records.Begin) -> None:
        run_id = self._progress.runs.get(record.run)
        if run_id is None:
            run_id = self._found(record) or self._created(record)
        self._client.update_run(run_id, "RUNNING")
        if record.run == CAMPAIGN:
            # What a killed process left open is over.
            self.end_all("KILLED", record.time)
        self._progress.runs[record.run] = run_id
        if record.run not in self._progress.open:
            self._progress.open.append(record.run)

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
            tags["mlflow.parentRunId"] = self._progress.runs[CAMPAIGN]
        run = self._client.create_run(self._experiment(record.experiment), record.time, tags, record.name)
        return str(run.info.run_id)

    def _experiment(self, name: str) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self._client.create_experiment(name, _artifact_location(self._client.tracking_uri, name)))
            except MlflowException as error:
                # Another campaign was a little earlier.
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                experiment = self._client.get_experiment_by_name(name)
        assert experiment is not None
        if experiment.lifecycle_stage != "active":
            reason = f"the experiment '{name}' was deleted; restore it, or set `tracking.experiment`"
            raise MlflowException(reason, RESOURCE_DOES_NOT_EXIST)
        return str(experiment.experiment_id)

    def _end(self, record: records.End) -> None:
        if record.run == CAMPAIGN:
            self.end_all(record.status, record.time)
            self._delete_duplicates()
        else:
            self._end_one(record.run, record.status, record.time)

    def _delete_duplicates(self) -> None:
        """Deletes runs of a request that MLflow's client, or we, repeated while the server still worked at it."""
        ours = self._progress.runs
        experiment = self._client.get_run(ours[CAMPAIGN]).info.experiment_id
        for run in self._client.search_runs([experiment], f"tags.`{_KEY_TAG}` LIKE '{self._id}/%'", max_results=5000):
            key = run.data.tags[_KEY_TAG].removeprefix(f"{self._id}/")
            if ours.get(key, run.info.run_id) != run.info.run_id:
                self._client.delete_run(run.info.run_id)

    def end_all(self, status: str, end: int) -> None:
        """Ends what is open, at a time in milliseconds."""
        for key in reversed(self._progress.open.copy()):
            self._end_one(key, status, end)

    def _end_one(self, key: str, status: str, end: int) -> None:
        if key in self._progress.open:
            self._client.set_terminated(self._progress.runs[key], status, end)
            self._progress.open.remove(key)

    def _log_batch(self, batch: Sequence[Record]) -> None:
        metrics: dict[str, list[Metric]] = defaultdict(list)
        params: dict[str, dict[str, str]] = defaultdict(dict)
        tags: dict[str, dict[str, str]] = defaultdict(dict)
        for record in batch:
            if (run_id := self._progress.runs.get(record.run)) is None:
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
                path = self._inside(record.path)
                if path is not None and path.is_file():
                    self._client.log_artifact(run_id, str(path), record.folder)
            case records.Dataset():
                self._log_dataset(record, run_id)
            case records.Figures():
                self._log_figures(record, run_id)
            case records.Model():
                if self._inside(record.directory) is not None:
                    from .registry import register

                    register(self._client, self._directory, run_id, record)
            case _:
                raise AssertionError(record)

    def _inside(self, name: str) -> Path | None:
        """What a record names, None if it lies outside: the run directory may be somebody else's.

        Nothing in it may lie outside either, as behind a link.
        """
        root, path = self._directory.resolve(), self._directory / name
        every = (path, *path.rglob("*")) if path.is_dir() else (path,)
        if all(each.resolve().is_relative_to(root) for each in every):
            return path
        logger.warning("%s is not sent to MLflow: it lies outside the run directory, or links to what does", name)
        return None

    def _log_dataset(self, record: records.Dataset, run_id: str) -> None:
        source = resolve_dataset_source(record.uri)
        profile = json.dumps({"num_rows": record.rows})
        digest = record.digest[:32]
        dataset = Dataset("simulations", digest, source._get_source_type(), source.to_json(), profile=profile)
        tags = [InputTag("mlflow.data.context", "simulations"), InputTag("rows", str(record.rows))]
        self._client.log_inputs(run_id, [DatasetInput(dataset, tags)])

    def _log_figures(self, record: records.Figures, run_id: str) -> None:
        from PIL import Image

        from .live_figures import drawn

        for name, path in drawn(self._directory / "tracking", record.step).items():
            if self._inside(str(path.relative_to(self._directory))) is None:
                continue
            # The names that MLflow gives to images say key and time.
            there = [Path(entry.path).name for entry in self._client.list_artifacts(run_id, "images")]
            if not any(entry.startswith(name) and str(record.time) in entry for entry in there):
                with Image.open(path) as image:
                    self._client.log_image(run_id, image, key=name, step=record.step, timestamp=record.time)


def _artifact_location(uri: str, experiment: str) -> str | None:
    """Files of a local store lie beside it, whatever folder later commands are started from."""
    if not uri.startswith("sqlite:///"):
        return None
    folder = Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve().parent
    return (folder / "mlartifacts" / as_part(experiment)).as_uri()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
