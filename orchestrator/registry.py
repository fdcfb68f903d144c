"""The posterior in MLflow's model registry: logged once, registered once, champion if it is the best so far.

The score is `mean log q(theta | x, beta = 1)` over simulations of prior draws that the campaign kept from training (see
`orchestrator.held_out`). Champion and challenger are scored on the same rows, those of the challenger's campaign.
"""

from __future__ import annotations

__all__ = ["CHAMPION", "register"]

import logging
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learners.asking import row_column
from learners.drawing import DrawingPosterior
from learners.posterior import TemperedPosterior
from learners.saving import saved_digest
from simulators.errors import TemperflowError

from . import tracking_records as records
from .held_out import HeldOut, held_out
from .run_directory import RunDirectory

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

CHAMPION = "champion"
_ROOT = Path(__file__).resolve().parent.parent
_DIGEST_TAG = "temperflow.digest"
#: What a posterior needs to be loaded and served.
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "safetensors", "scipy", "threadpoolctl")
#: And where NumPy cannot draw from it.
_TORCH = ("torch", "zuko")


def register(client: MlflowClient, directory: Path, run_id: str, record: records.Model) -> None:
    """Logs and registers the posterior of a run directory, once however often it is called.

    Arguments:
        client: Client of the server.
        directory: Run directory.
        run_id: MLflow's id of the campaign's run.
        record: Which posterior, and under which name.
    """
    folder = directory / record.directory
    if saved_digest(folder) != record.digest:
        return  # A later training has replaced it; a later record tells of that.
    posterior = TemperedPosterior.load(folder)
    model = _logged(client, run_id, folder, posterior, record.digest)
    registered = _registered(client, model, run_id, record.name)
    _compete(client, registered, posterior, held_out(RunDirectory(directory), posterior))


def _logged(
    client: MlflowClient, run_id: str, folder: Path, posterior: TemperedPosterior, identity: str
) -> LoggedModel:
    """The logged model of the run with that digest; made, or completed, if it is not there."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    experiment = client.get_run(run_id).info.experiment_id
    query = f"source_run_id = '{run_id}' AND tags.`{_DIGEST_TAG}` = '{identity}'"
    found = client.search_logged_models([experiment], query, max_results=1)
    if found:
        model = found[0]
    else:
        tags = {_DIGEST_TAG: identity}
        model = client.create_logged_model(experiment, "posterior", run_id, tags, _facts(posterior), "posterior")
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model"
            _save(path, folder, posterior, model.model_id, run_id)
            client.log_model_artifacts(model.model_id, str(path))
        client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
    return model


def _facts(posterior: TemperedPosterior) -> dict[str, str]:
    low, high = posterior.beta_range
    facts = {"parameters": ", ".join(posterior.names), "dim_x": posterior.dim_x, "beta_low": low, "beta_high": high}
    return {k: str(v)[:5900] for k, v in {**facts, **posterior.metadata}.items()}


def _save(path: Path, folder: Path, posterior: TemperedPosterior, model_id: str, run_id: str) -> None:
    """Writes the model in MLflow's form: from code, without pickle."""
    import mlflow
    import numpy as np
    import pandas as pd
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    inputs = Schema([ColSpec(DataType.double, f"x{i}") for i in range(posterior.dim_x)])
    row_name = row_column(posterior.names)
    outputs = Schema([ColSpec(DataType.long, row_name), *(ColSpec(DataType.float, name) for name in posterior.names)])
    low, high = posterior.beta_range
    beta = min(max(1.0, low), high)
    params = ParamSchema(
        [
            ParamSpec("beta", DataType.double, beta),
            ParamSpec("num_samples", DataType.long, 1000),
            ParamSpec("seed", DataType.long, 0),
            ParamSpec("refine", DataType.boolean, False),
        ]
    )
    needed = _REQUIREMENTS if DrawingPosterior.load(folder) else (*_REQUIREMENTS, *_TORCH)
    x = posterior.default_x
    row = posterior.scaling.inverse(posterior.scaling.center.new_zeros(posterior.dim_x)) if x is None else x
    example = pd.DataFrame(np.atleast_2d(row.numpy()), columns=inputs.input_names())
    mlflow.pyfunc.save_model(
        path,
        mlflow_model=Model(run_id=run_id, model_id=model_id),
        python_model=str(Path(__file__).with_name("served_model.py")),
        artifacts={"posterior": str(folder)},
        code_paths=[str(_ROOT / "learners"), str(_ROOT / "simulators")],
        signature=ModelSignature(inputs, outputs, params),
        input_example=(example, {"beta": beta, "num_samples": 10}),
        # The build of torch for a certain accelerator is no requirement of the model.
        pip_requirements=[f"{package}=={version(package).split('+')[0]}" for package in needed],
    )


def _registered(client: MlflowClient, model: LoggedModel, run_id: str, name: str) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = f"models:/{model.model_id}"
    for known in client.search_model_versions(f"run_id = '{run_id}'"):
        if (known.name, known.source) == (name, source):
            return known
    return client.create_model_version(name, source, run_id, {"temperflow": "posterior"}, model_id=model.model_id)


def _compete(
    client: MlflowClient, challenger: ModelVersion, posterior: TemperedPosterior, rows: HeldOut | None
) -> None:
    """Makes the version champion if there is none yet, or if it beats it on the rows kept from training."""
    name, number = challenger.name, challenger.version
    score = None if rows is None else rows.score(posterior)
    if score is not None:
        client.set_model_version_tag(name, number, "held_out_score", f"{score:.6g}")
        client.set_model_version_tag(name, number, "held_out_rows", str(len(rows)))  # type: ignore[arg-type]
    champion = _champion(client, name)
    if champion is None:
        verdict, wins = "the first", True
    elif champion.version == number:
        return
    else:
        verdict, wins = _verdict(client, champion, posterior, rows, score)
    client.set_model_version_tag(name, number, "champion", verdict)
    if wins:
        client.set_registered_model_alias(name, CHAMPION, number)


def _champion(client: MlflowClient, name: str) -> ModelVersion | None:
    # Asking for an alias that is not there is an error that cannot be told from others.
    aliases: dict[str, Any] = client.get_registered_model(name).aliases
    return client.get_model_version(name, aliases[CHAMPION]) if CHAMPION in aliases else None


def _loaded(client: MlflowClient, champion: ModelVersion) -> TemperedPosterior | None:
    try:
        return TemperedPosterior.load(f"models:/{champion.name}/{champion.version}")
    except TemperflowError as error:
        # If the server is out, this raises: then there is no verdict yet.
        client.get_registered_model(champion.name)
        logger.warning("the champion of '%s' cannot be loaded, hence not compared with: %s", champion.name, error)
        return None


def _verdict(
    client: MlflowClient,
    champion: ModelVersion,
    posterior: TemperedPosterior,
    rows: HeldOut | None,
    score: float | None,
) -> tuple[str, bool]:
    """In words, and whether the challenger wins."""
    if rows is None or score is None:
        return "no: too few simulations were kept from training to compare", False
    previous = _loaded(client, champion)
    if previous is None:
        return f"no: version {champion.version} cannot be loaded", False
    if (previous.names, previous.dim_x) != (posterior.names, posterior.dim_x):
        return f"no: version {champion.version} has other parameters or another x", False
    other = rows.score(previous)
    if other is None:
        return f"no: version {champion.version} does not know beta = 1", False
    if score > other:
        return f"yes: {score:.4g} against {other:.4g} of version {champion.version}", True
    return f"no: {score:.4g} against {other:.4g} of version {champion.version}", False
