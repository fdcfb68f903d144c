"""Tracking in MLflow, from a thread of its own: a slow or dead tracking server never stops a campaign."""

from __future__ import annotations

__all__ = ["Tracker", "default_uri", "load_registered"]

import contextlib
import json
import logging
import os
import queue
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from learners.posterior import TemperedPosterior

logger = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parent.parent


def default_uri() -> str:
    """`MLFLOW_TRACKING_URI`, else a sqlite store in the current folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path.cwd() / 'mlflow.db'}"


class Tracker:
    """One campaign's MLflow run. Every method returns at once; what fails is logged and given up.

    Arguments:
        uri: Tracking server or store.
        experiment: Experiment's name.
        run_name: Name of the run.
        run_id: A run to continue, None for a new one.
        on_started: Called with the run's id once it exists.
        enabled: Whether to track at all.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        run_id: str | None,
        on_started: Callable[[str], None],
        enabled: bool = True,
    ) -> None:
        self.uri, self.experiment, self.run_name, self.enabled = uri, experiment, run_name, enabled
        self.run_id, self._on_started = run_id, on_started
        self._client: Any = None
        self.model_version: str | None = None
        self._failures = 0
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)
        if enabled:
            self._queue.put(self._start)
            self._thread.start()

    def params(self, values: Mapping[str, Any]) -> None:
        """Logs parameters; nested mappings become dotted names. Repeating them is harmless."""
        flat = _flatten(values)

        def log() -> None:
            from mlflow.entities import Param

            known = self._client.get_run(self.run_id).data.params
            entries = [Param(k, str(v)[:5900]) for k, v in flat.items() if k not in known]
            self._client.log_batch(self.run_id, params=entries)

        self._submit(log)

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Logs metrics against the number of simulations."""
        now = int(time.time() * 1000)

        def log() -> None:
            from mlflow.entities import Metric

            entries = [Metric(k, float(v), now, step) for k, v in values.items() if v == v]
            self._client.log_batch(self.run_id, metrics=entries)

        self._submit(log)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Logs a file, in a folder of the run's artifacts."""
        self._submit(lambda: self._client.log_artifact(self.run_id, str(path), folder))

    def text(self, text: str, name: str) -> None:
        """Logs a text as a file."""
        self._submit(lambda: self._client.log_text(self.run_id, text, name))

    def dataset(self, location: str, digest: str, rows: int) -> None:
        """Logs where the simulations are, a path or a URI, and what they are."""

        def log() -> None:
            from mlflow.data.meta_dataset import MetaDataset
            from mlflow.entities import DatasetInput, InputTag

            source = _source(location)
            dataset = MetaDataset(  # type: ignore[abstract]
                source, name="simulations", digest=digest[:32]
            )._to_mlflow_entity()
            tags = [InputTag("mlflow.data.context", "simulations"), InputTag("rows", str(rows))]
            self._client.log_inputs(self.run_id, [DatasetInput(dataset, tags)])
            self._client.set_tag(self.run_id, "simulations.path", location)
            self._client.set_tag(self.run_id, "simulations.digest", digest)

        self._submit(log)

    def model(self, directory: Path, posterior: TemperedPosterior, name: str) -> None:
        """Registers the posterior saved in `directory` as a pyfunc model, from code."""
        self._submit(lambda: self._log_model(directory, posterior, name))

    def close(self, status: str, patience: float = 60.0) -> None:
        """Ends the run with `FINISHED`, `FAILED` or `KILLED`, waiting for what is under way."""
        if not self.enabled:
            return
        self._submit(lambda: self._client.set_terminated(self.run_id, status))
        self._queue.put(None)
        self._thread.join(patience)
        if self._thread.is_alive():
            logger.warning("MLflow at %s did not take everything within %g s", self.uri, patience)

    def _submit(self, action: Callable[[], None]) -> None:
        if self.enabled:
            self._queue.put(action)

    def _work(self) -> None:
        with _quiet():
            while (action := self._queue.get()) is not None:
                try:
                    action()
                except Exception as error:
                    # Tracking is a service to the campaign, never a reason to lose it.
                    self._failures += 1
                    if self._failures <= 3:
                        reason = str(error).splitlines()[0] if str(error) else error
                        logger.warning("MLflow at %s: %s", self.uri, reason)

    def _start(self) -> None:
        os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
        # Its bars for files of a few kilobytes would tear ours.
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        import mlflow

        mlflow.set_tracking_uri(self.uri)
        self._client = mlflow.MlflowClient(self.uri)
        experiment = self._client.get_experiment_by_name(self.experiment)
        if experiment is None:
            # A local store keeps its files beside it, whatever folder later commands are started from.
            local = self.uri.startswith("sqlite:///")
            folder = Path(self.uri.removeprefix("sqlite:///")).parent / "mlartifacts"
            location = (folder / self.experiment).as_uri() if local else None
            experiment_id = self._client.create_experiment(self.experiment, location)
        else:
            experiment_id = experiment.experiment_id
        if self.run_id is None:
            tags = {"temperflow": "campaign", "mlflow.source.git.commit": _commit() or "unknown"}
            self.run_id = self._client.create_run(experiment_id, run_name=self.run_name, tags=tags).info.run_id
            self._on_started(self.run_id)
        else:
            self._client.update_run(self.run_id, "RUNNING")

    def _log_model(self, directory: Path, posterior: TemperedPosterior, name: str) -> None:
        import mlflow
        import numpy as np
        import pandas as pd
        from mlflow.models import ModelSignature
        from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

        inputs = Schema([ColSpec(DataType.double, f"x{i}") for i in range(posterior.dim_x)])
        outputs = Schema([ColSpec(DataType.long, "row"), *(ColSpec(DataType.float, n) for n in posterior.names)])
        params = ParamSchema(
            [
                ParamSpec("beta", DataType.double, 1.0),
                ParamSpec("num_samples", DataType.long, 1000),
                ParamSpec("seed", DataType.long, 0),
            ]
        )
        x = posterior.default_x
        row = x.numpy() if x is not None else posterior.scaling.center.numpy()
        example = pd.DataFrame(np.atleast_2d(row), columns=inputs.input_names())
        requirements = [f"{package}=={_version(package)}" for package in ("mlflow", "torch", "zuko")]
        requirements += [f"{package}=={_version(package)}" for package in ("safetensors", "scipy", "pandas")]
        with mlflow.start_run(run_id=self.run_id):
            info = mlflow.pyfunc.log_model(
                name="posterior",
                python_model=str(Path(__file__).with_name("served_model.py")),
                artifacts={"posterior": str(directory)},
                code_paths=[str(_ROOT / "learners"), str(_ROOT / "simulators")],
                signature=ModelSignature(inputs, outputs, params),
                input_example=(example, {"beta": 1.0, "num_samples": 10}),
                pip_requirements=requirements,
            )
        with _quiet():
            registered = mlflow.register_model(info.model_uri, name)
        self.model_version = str(registered.version)


def load_registered(uri: str, tracking_uri: str | None = None) -> TemperedPosterior:
    """The posterior of a model in the registry, `models:/NAME/VERSION` or `models:/NAME@alias`."""
    import mlflow

    mlflow.set_tracking_uri(tracking_uri or default_uri())
    folder = Path(mlflow.artifacts.download_artifacts(uri))
    spec = next(folder.rglob("posterior.json"))
    return TemperedPosterior.load(spec.parent)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what MLflow tells of its own doings from tearing the progress display; our own warnings stay."""
    from mlflow.utils.logging_utils import disable_logging, enable_logging

    log = logging.getLogger("mlflow")
    level = log.level
    log.setLevel(logging.ERROR)
    disable_logging()
    try:
        yield
    finally:
        enable_logging()
        log.setLevel(level)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _version(package: str) -> str:
    from importlib.metadata import version

    # The build of torch for a certain accelerator is no requirement of the model.
    return version(package).split("+")[0]


def _commit() -> str | None:
    """The commit of the current folder's repository, if it is one."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


def _source(location: str) -> Any:
    from mlflow.data.dataset_source_registry import get_dataset_source_from_json

    remote = "://" in location
    kind = "s3" if location.startswith("s3://") else "local"
    return get_dataset_source_from_json(json.dumps({"uri": location if remote else Path(location).as_uri()}), kind)
