"""The posterior in MLflow's registry: logged from code, the best is champion, usable anywhere, served over HTTP."""

from __future__ import annotations

import gc
import http.client
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import requests
import torch
from mlflow.pyfunc.scoring_server import predictions_to_json
from mlflow.utils.proto_json_utils import NumpyEncoder
from mlflow_servers import Child, tracking_server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from learners import TemperedPosterior, whiten
from learners.drawing import DrawingPosterior
from learners.familiarity import Familiarity
from learners.flows import LocationScale
from learners.network import NetworkOptions, PosteriorNetwork
from learners.ratio import Ratio
from learners.scaling import DataScaling
from orchestrator.delivery import Delivery
from orchestrator.held_out import held_out
from orchestrator.proposal import Finished, ProposalKind, Proposals
from orchestrator.run_directory import RunDirectory
from orchestrator.tracking import Tracker
from orchestrator.tracking_journal import Journal
from simulators.errors import SavedModelError
from simulators.outcome import Outcome, Outcomes, Status
from simulators.prior import Marginal, ProductPrior

NAMES = ("a", "b")
PRIOR = ProductPrior({name: Marginal("Normal", {"loc": 0.0, "scale": 1.0}) for name in NAMES})


def simulate(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    sums = torch.cat([theta, theta.sum(dim=-1, keepdim=True)], dim=-1)
    return theta, sums + 0.5 * torch.randn(n, 3, generator=generator, dtype=torch.float64)


def posterior(
    skill: str, names: tuple[str, ...] = NAMES, beta_range: tuple[float, float] = (0.1, 2.0)
) -> TemperedPosterior:
    """`poor` is wrong, `fair` knows only the prior, `good` is a regression."""
    torch.manual_seed(0)
    theta, x = simulate(2000, 0)
    scaling = DataScaling.fit(x)
    network = PosteriorNetwork(2, 3, beta_range, NetworkOptions(hidden=(16,), transforms=1, trunk=()))
    with torch.no_grad():
        if skill == "poor":
            for parameter in network.parameters():
                parameter.add_(0.5 * torch.randn_like(parameter))
        if skill == "good":
            beta = torch.ones(len(x))
            regression = next(module for module in network.modules() if isinstance(module, LocationScale))
            regression.set_least_squares(theta.float(), network.context(scaling(x), beta))
    familiarity = Familiarity.fit(scaling(x))
    source = Ratio(2, 3, (8,), seed=0)  # not trained: what it says is wrong, but always the same
    source.fitted = True
    facts = {"simulations": 2000}
    return TemperedPosterior(network, whiten(PRIOR), scaling, familiarity, names, x[0], facts, source=source)


def campaign(folder: Path, held_out_rows: int = 60) -> Path:
    """A run directory with simulations that were kept from training."""
    run = RunDirectory(folder)
    folder.mkdir()
    run.update(config={})
    theta, x = simulate(held_out_rows, 1)
    proposals = Proposals.of_kind(0, theta.numpy(), ProposalKind.CALIBRATION_PRIOR, 0)
    outcomes = [Outcome(Status.OK, row, "", 1e9, 0.1) for row in x.numpy()]
    workers = np.full(len(x), "host:1", dtype=object)
    run.store().append(Finished(proposals, Outcomes.from_rows(outcomes), np.ones(len(x), dtype=np.int64), workers))
    return folder


def deliver(folder: Path, server: Child, name: str, *posteriors: TemperedPosterior) -> int:
    """Delivers posteriors of a campaign, each after its training."""
    told = Tracker(folder, server.uri, "registry", folder.name, enabled=False)
    told._journal = Journal(folder / "tracking")
    told._begin("campaign", folder.name, "campaign")
    delivered = 0
    for trained in posteriors:
        told.model(trained.save(folder / "posterior"), name)
        delivered += Delivery(folder, server.uri).deliver()
    return delivered


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """A server with a model `served`, version 2 of which is champion."""
    folder = tmp_path_factory.mktemp("registry")
    child = tracking_server(folder)
    child.start()
    deliver(campaign(folder / "first"), child, "served", posterior("fair"))
    deliver(campaign(folder / "second"), child, "served", posterior("good"))
    yield child
    child.kill()


@pytest.fixture
def client(server: Child, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    mlflow.set_tracking_uri(server.uri)
    return mlflow.MlflowClient(server.uri)


def verdict(client: mlflow.MlflowClient, name: str, version: int) -> str:
    return str(client.get_model_version(name, str(version)).tags["champion"])


def champion(client: mlflow.MlflowClient, name: str) -> int:
    return int(client.get_model_version_by_alias(name, "champion").version)


def test_the_champion_is_the_best_on_simulations_kept_from_training(
    tmp_path: Path, server: Child, client: mlflow.MlflowClient
) -> None:
    for i, skill in enumerate(["poor", "good", "fair"]):
        deliver(campaign(tmp_path / f"{i}"), server, "contest", posterior(skill))
    assert champion(client, "contest") == 2
    assert verdict(client, "contest", 1) == "the first"
    assert verdict(client, "contest", 2).startswith("yes:")
    assert verdict(client, "contest", 3).startswith("no:")
    scores = [float(client.get_model_version("contest", str(i)).tags["held_out_score"]) for i in (1, 2, 3)]
    assert sorted(scores) == [scores[0], scores[2], scores[1]]
    theta, x = simulate(60, 1)
    with warnings.catch_warnings(action="ignore"):
        expected = posterior("good").log_prob(theta, x, beta=1.0).mean()
    np.testing.assert_allclose(scores[1], expected, rtol=1e-4)


def test_what_cannot_be_compared_does_not_replace_the_champion(
    tmp_path: Path, server: Child, client: mlflow.MlflowClient
) -> None:
    challengers = {
        "other parameters": (posterior("good", ("a", "c")), 60),
        "too few": (posterior("good"), 5),
        "too few simulations": (posterior("good", beta_range=(0.1, 0.5)), 60),
    }
    deliver(campaign(tmp_path / "first"), server, "guarded", posterior("poor"))
    for i, (reason, (challenger, rows)) in enumerate(challengers.items()):
        deliver(campaign(tmp_path / f"{i}", rows), server, "guarded", challenger)
        assert reason in verdict(client, "guarded", i + 2)
        assert champion(client, "guarded") == 1


def test_a_posterior_delivered_again_is_the_same_version(
    tmp_path: Path, server: Child, client: mlflow.MlflowClient
) -> None:
    run = campaign(tmp_path / "run")
    deliver(run, server, "again", posterior("fair"))
    (run / "tracking" / "delivered.json").unlink()
    assert Delivery(run, server.uri).deliver() == 2
    # The next process of the same campaign, which has nothing new to learn, and one that has.
    deliver(run, server, "again", posterior("fair"))
    assert len(client.search_model_versions("name = 'again'")) == 1
    deliver(run, server, "again", posterior("good"))
    assert len(client.search_model_versions("name = 'again'")) == 2
    assert champion(client, "again") == 2


def test_a_model_left_half_made_is_completed(tmp_path: Path, server: Child, client: mlflow.MlflowClient) -> None:
    run = campaign(tmp_path / "run")
    told = Tracker(run, server.uri, "registry", "half", enabled=False)
    told._journal = Journal(run / "tracking")
    told._begin("campaign", "half", "campaign")
    delivery = Delivery(run, server.uri)
    delivery.deliver()
    assert delivery.run_id is not None
    told.model(posterior("fair").save(run / "posterior"), "half")
    [record] = [json.loads(line) for line in (run / "tracking" / "journal.jsonl").read_text().splitlines()[-1:]]
    experiment = client.get_run(delivery.run_id).info.experiment_id
    tags = {"temperflow.digest": record["digest"]}
    client.create_logged_model(experiment, "posterior", delivery.run_id, tags, {}, "posterior")
    delivery.deliver()
    [model] = client.search_logged_models([experiment], f"source_run_id = '{delivery.run_id}'")
    assert str(model.status) == "READY"
    draws = TemperedPosterior.load("models:/half@champion").sample((5,), seed=1)
    torch.testing.assert_close(draws, posterior("fair").sample((5,), seed=1))


def test_the_posterior_itself_comes_back(client: mlflow.MlflowClient) -> None:
    original = posterior("good")
    for uri in "models:/served@champion", "models:/served/2":
        loaded = TemperedPosterior.load(uri)
        torch.testing.assert_close(loaded.sample((10,), beta=0.5, seed=1), original.sample((10,), beta=0.5, seed=1))
    for uri, reason in {"models:/nobody@champion": "nobody", "models:/served/99": "99"}.items():
        with pytest.raises(SavedModelError, match=reason):
            TemperedPosterior.load(uri)


def test_the_model_is_documented_and_has_no_pickle(client: mlflow.MlflowClient, tmp_path: Path) -> None:
    model = mlflow.pyfunc.load_model("models:/served@champion")
    signature = model.metadata.signature
    assert signature is not None
    assert signature.inputs.input_names() == ["x0", "x1", "x2"]
    assert [param.name for param in signature.params] == ["beta", "num_samples", "seed", "refine"]
    assert signature.outputs.input_names() == ["row", *NAMES]
    np.testing.assert_allclose(model.input_example, posterior("good").default_x[None])  # type: ignore[index]
    folder = Path(mlflow.artifacts.download_artifacts("models:/served@champion", dst_path=str(tmp_path)))
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert not {name for name in names if name.endswith((".pkl", ".pickle", ".pt", ".joblib"))}
    requirements = (folder / "requirements.txt").read_text().split()
    assert all("==" in line for line in requirements)
    packages = {line.split("==")[0] for line in requirements}
    assert {"numpy", "safetensors", "threadpoolctl"} <= packages
    assert not {"torch", "zuko"} & packages  # a gigabyte that draws do not need
    assert client.get_model_version("served", "2").run_id


@pytest.mark.usefixtures("client")
def test_without_its_wrapper_the_model_has_the_same_defaults() -> None:
    model = mlflow.pyfunc.load_model("models:/served@champion")
    x = pd.DataFrame([{"x0": 0.5, "x1": -0.3, "x2": 0.1}])
    alone = model.unwrap_python_model().predict(None, x)
    pd.testing.assert_frame_equal(alone, model.predict(x))
    assert len(alone) == 1000


@pytest.mark.usefixtures("client")
def test_a_parameter_may_be_called_row(tmp_path: Path, server: Child) -> None:
    deliver(campaign(tmp_path / "run"), server, "rows", posterior("fair", ("row", "row_")))
    model = mlflow.pyfunc.load_model("models:/rows@champion")
    assert model.metadata.signature.outputs.input_names() == ["row__", "row", "row_"]
    x = pd.DataFrame({"x0": [0.5, 0.1], "x1": [-0.3, 0.1], "x2": [0.1, 0.2]})
    draws = model.predict(x, params={"num_samples": 2})
    assert list(draws.columns) == ["row__", "row", "row_"]
    assert list(draws["row__"]) == [0, 0, 1, 1]


CLEAN = """
import importlib.util, sys
assert importlib.util.find_spec("learners") is None, "not a clean environment"
assert importlib.util.find_spec("orchestrator") is None
sys.modules["torch"] = None  # whoever imports it fails
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model("models:/served@champion")
draws = model.predict(pd.DataFrame({"x0": [0.5], "x1": [-0.3], "x2": [0.1]}), params={"beta": 0.5})
assert list(draws.columns) == ["row", "a", "b"] and len(draws) == 1000
try:
    model.predict(pd.DataFrame({"x0": [0.5], "x1": [-0.3], "x2": [0.1]}), params={"refine": True})
    raise SystemExit("refined without torch")
except mlflow.exceptions.MlflowException as error:
    assert "refine needs torch" in str(error)
print(draws.to_json())
"""


def test_it_works_in_an_environment_that_knows_nothing_of_us(server: Child, tmp_path: Path) -> None:
    # Without `site` the interpreter reads no .pth file, hence has no editable install.
    packages = os.pathsep.join({str(Path(module.__file__ or "").parents[1]) for module in (mlflow, pd, torch)})
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    environment |= {"PYTHONPATH": packages, "MLFLOW_TRACKING_URI": server.uri}
    done = subprocess.run(
        [sys.executable, "-S", "-c", CLEAN], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    draws = pd.read_json(io.StringIO(done.stdout))
    expected = posterior("good").sample((1000,), x=[0.5, -0.3, 0.1], beta=0.5, seed=0)
    np.testing.assert_allclose(draws[list(NAMES)], expected, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def service(server: Child, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    arguments = ["models", "serve", "-m", "models:/served@champion", "--env-manager", "local", "--port", "{port}"]
    arguments += ["-w", "2"]
    child = Child(arguments, tmp_path_factory.mktemp("service"), "/ping", MLFLOW_TRACKING_URI=server.uri)
    child.start()
    yield child
    child.kill()


def ask(service: Child, body: Any, content_type: str = "application/json") -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
    text = body if isinstance(body, str) else json.dumps(body)
    connection.request("POST", "/invocations", text, {"Content-Type": content_type})
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer.status, json.loads(content) if content.startswith("{") else content


X = {"x0": 0.5, "x1": -0.3, "x2": 0.1}


@pytest.mark.parametrize(
    "rows",
    [
        {"dataframe_records": [X]},
        {"dataframe_split": {"columns": list(X), "data": [list(X.values())]}},
        {"inputs": {name: [value] for name, value in X.items()}},
        {"instances": [X]},
    ],
    ids=lambda rows: next(iter(rows)),
)
def test_the_service_answers(service: Child, rows: dict[str, Any]) -> None:
    status, answer = ask(service, {**rows, "params": {"beta": 0.5, "num_samples": 7, "seed": 3}})
    assert status == 200
    draws = pd.DataFrame(answer["predictions"])
    expected = posterior("good").sample((7,), x=list(X.values()), beta=0.5, seed=3)
    assert draws["row"].eq(0).all()
    np.testing.assert_allclose(draws[list(NAMES)], expected, rtol=1e-5, atol=1e-6)


def test_the_service_refines_if_asked_to(service: Child) -> None:
    body = {"inputs": {k: [v] for k, v in X.items()}, "params": {"num_samples": 9, "seed": 3, "refine": True}}
    status, answer = ask(service, body)
    assert status == 200
    expected = posterior("good").sample_batched((9,), [list(X.values())], seed=3, refine=True)[:, 0]
    np.testing.assert_allclose(pd.DataFrame(answer["predictions"])[list(NAMES)], expected, rtol=1e-4, atol=1e-5)


def test_numbers_are_short_and_lose_nothing(service: Child, tmp_path: Path) -> None:
    _, answer = ask(service, {"inputs": {k: [v] for k, v in X.items()}, "params": {"num_samples": 200, "seed": 3}})
    drawing = DrawingPosterior.load(posterior("good").save(tmp_path))
    assert drawing is not None
    expected = drawing.sample_batched(200, np.array([list(X.values())]), 1.0, seed=3)[:, 0]
    numbers = [[row[name] for name in NAMES] for row in answer["predictions"]]
    assert np.array_equal(np.array(numbers, dtype=np.float32), expected)
    digits = [len(Decimal(repr(number)).normalize().as_tuple().digits) for row in numbers for number in row]
    assert max(digits) <= 9


def test_requests_at_once_get_each_its_own_answer(service: Child) -> None:
    def asked(seed: int) -> tuple[int, Any]:
        params = {"beta": 0.5, "num_samples": 50, "seed": seed}
        return ask(service, {"inputs": {k: [v] for k, v in X.items()}, "params": params})

    with ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(asked, range(40)))
    for seed, (status, answer) in enumerate(answers):
        assert status == 200
        expected = posterior("good").sample((50,), x=list(X.values()), beta=0.5, seed=seed)
        np.testing.assert_allclose(pd.DataFrame(answer["predictions"])[list(NAMES)], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("client")
def test_a_process_that_does_other_things_too_is_left_as_it_is() -> None:
    def state() -> list[Any]:
        return [gc.get_freeze_count(), gc.get_threshold(), NumpyEncoder.iterencode, HttpToolsProtocol.connection_made]

    before = state()
    mlflow.pyfunc.load_model("models:/served@champion")
    assert state() == before


def test_the_text_of_an_answer_is_what_mlflow_writes(service: Child) -> None:
    body = {"inputs": {k: [v] for k, v in X.items()}, "params": {"num_samples": 20, "seed": 3}}
    address = f"http://127.0.0.1:{service.port}/invocations"
    answer = requests.post(address, json=body, timeout=60)
    expected = io.StringIO()
    predictions_to_json(pd.DataFrame(answer.json()["predictions"]), expected)
    assert answer.text == expected.getvalue()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"inputs": {"x0": [0.5], "x1": [0.1], "y": [0.1]}}, "x2"),
        ({"dataframe_records": [{**X, "x0": None}]}, "NaN"),
        ({"dataframe_records": [{**X, "x0": "hare"}]}, "x0"),
        ('{"dataframe_records": [{"x0": NaN, "x1": 0, "x2": 0}]}', "NaN"),
        ({"inputs": {"x0": [], "x1": [], "x2": []}}, "samples"),
        ({"dataframe_records": [X], "params": {"beta": 5.0}}, "outside the trained range [0.1, 2]"),
        ({"dataframe_records": [X], "params": {"beta": "cold"}}, "beta"),
        ({"dataframe_records": [X], "params": {"num_samples": 0}}, "samples"),
        ({"dataframe_records": [X], "params": {"num_samples": 10**9}}, "1000000"),
        ({"dataframe_records": [X], "params": {"seed": 2**70}}, "seed"),
        ({"rows": [X]}, "dataframe_records"),
        ("{", "JSON"),
    ],
)
def test_the_service_refuses_with_a_reason(service: Child, body: Any, reason: str) -> None:
    status, answer = ask(service, body)
    assert 400 <= status < 500, answer
    assert reason in (answer["message"] if isinstance(answer, dict) else answer)


def test_rows_of_another_length_are_no_score(tmp_path: Path) -> None:
    run = RunDirectory(campaign(tmp_path / "run"))
    assert held_out(run, posterior("fair")) is not None
    other = posterior("fair")
    other.scaling = DataScaling.fit(torch.randn(50, 4))
    assert held_out(run, other) is None
