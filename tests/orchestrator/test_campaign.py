"""Campaigns from end to end, on a real Ray cluster and a real MLflow store."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest
import torch
import yaml
from campaigns import NORMAL, QUICK, write_campaign
from mlflow.entities import Run

from learners import TemperedPosterior
from orchestrator import Campaign, checking
from orchestrator.campaign import CampaignResult
from orchestrator.delivery import Delivery
from orchestrator.explorer import load_explored
from orchestrator.run_directory import RunDirectory
from orchestrator.store import SimulationStore
from simulators.errors import ConfigError, DataError, ObservationError, RunDirectoryError

pytestmark = pytest.mark.usefixtures("cluster")


@dataclass(frozen=True)
class Finished:
    """A campaign that has run once."""

    folder: Path
    config: Path
    result: CampaignResult
    uri: str

    def rows(self) -> pd.DataFrame:
        return pd.read_parquet(self.result.directory / "simulations")

    def mlflow_run(self) -> Run:
        assert self.result.mlflow_run_id is not None
        return mlflow.MlflowClient(self.uri).get_run(self.result.mlflow_run_id)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, cluster: None) -> Finished:
    folder = tmp_path_factory.mktemp("campaign")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    config = write_campaign(folder, tracking={"uri": uri})
    result = Campaign.from_file(config, directory=folder / "run").run(progress=False)
    return Finished(folder, config, result, uri)


def test_the_budget_is_met_exactly_and_each_simulation_is_one_row(finished: Finished) -> None:
    rows = finished.rows()
    assert len(rows) == 300
    assert sorted(rows["id"]) == list(range(300))
    assert ds.dataset(finished.result.directory / "simulations").count_rows() == 300
    assert rows["seed"].is_unique
    assert rows["theta"].map(len).eq(2).all()


def test_failures_are_rows_with_their_reason(finished: Finished) -> None:
    rows = finished.rows()
    theta = np.stack(rows["theta"].to_list())
    raised, invalid = theta[:, 0] < -1.6, (theta[:, 0] >= -1.6) & (theta[:, 1] > 1.8)
    assert (rows["status"][raised] == "raised").all()
    assert rows["reason"][raised].str.contains("theta_0 is too low").all()
    assert raised.any()
    assert invalid.any()
    assert (rows["status"][~raised & ~invalid] == "ok").all()
    assert rows["x"][raised | invalid].isna().all()


def test_proposals_say_where_they_came_from(finished: Finished) -> None:
    rows = finished.rows()
    kinds = set(rows["proposal"])
    assert kinds == {"prior", "tempered", "acquisition", "calibration-prior", "calibration-tempered"}
    density, beta = rows["proposal_log_density"], rows["beta"]
    assert density[rows["proposal"] != "acquisition"].notna().all()
    assert density[rows["proposal"] == "acquisition"].isna().all()
    prior = rows[rows["proposal"] == "prior"]
    standard = torch.distributions.Normal(0.0, 1.0)
    expected = standard.log_prob(torch.tensor(np.stack(prior["theta"].to_list()))).sum(dim=-1)
    np.testing.assert_allclose(prior["proposal_log_density"], expected, rtol=1e-5)
    assert beta[rows["proposal"].isin(["tempered", "acquisition"])].between(0.1 - 1e-6, 2.0 + 1e-6).all()
    assert beta[rows["proposal"] == "prior"].isna().all()


def test_the_posterior_has_the_observation_and_loads_from_the_run_directory(finished: Finished) -> None:
    posterior = finished.result.posterior
    draws = posterior.sample((100,), beta=0.5, seed=1)
    assert draws.shape == (100, 2)
    assert draws.dtype == torch.float32
    assert posterior.default_x is not None
    np.testing.assert_allclose(posterior.default_x, [0.5, -0.3, 0.1])
    loaded = TemperedPosterior.load(finished.result.directory)
    torch.testing.assert_close(loaded.sample((100,), beta=0.5, seed=1), draws)
    assert loaded.names == ("a", "b")
    assert loaded.log_prob(draws, x=[0.5, -0.3, 0.1], beta=0.5).shape == (100,)


def test_calibration_names_its_populations(finished: Finished) -> None:
    kinds = {check.kind: check for check in finished.result.checks}
    assert set(kinds) == {"prior", "tempered"}
    assert "beta = 0.1" in kinds["tempered"].population
    for check in finished.result.checks:
        ranks = np.array(check.ranks)
        assert ranks.shape == (len(ranks), 2)
        assert ((ranks >= 0) & (ranks <= 1)).all()


def test_the_report_stands_alone(finished: Finished) -> None:
    page = (finished.result.directory / "report.html").read_text()
    assert page.count("<img") + page.count("<svg") >= 4
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    figures = {path.name for path in (finished.result.directory / "figures").iterdir()}
    assert {"corner.png", "predictive.png", "simulations.png"} <= figures


def test_mlflow_has_the_run(finished: Finished) -> None:
    run, client = finished.mlflow_run(), mlflow.MlflowClient(finished.uri)
    assert run.info.status == "FINISHED"
    assert run.data.params["budget.simulations"] == "300"
    history = client.get_metric_history(run.info.run_id, "simulations")
    assert history[-1].value == 300
    assert {"surrogate_loss", "posterior_loss", "sbc_min_p/prior", "sbc_min_p/tempered"} <= set(run.data.metrics)
    [dataset] = run.inputs.dataset_inputs
    assert (finished.result.directory / "simulations").as_uri() in dataset.dataset.source
    digest = SimulationStore(finished.result.directory / "simulations").digest()
    assert run.data.tags["simulations.digest"] == digest
    assert dataset.dataset.digest == digest[:32]
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id)}
    assert {"figures", "images", "report.html", "config.yaml", "environment.json", "failures.json"} <= artifacts
    assert {"held_out_score", "calibration_error/prior", "utilization", "cpu_seconds", "queue"} <= set(run.data.metrics)
    assert {"acquisition_failed", "acquisition_unfitted"} <= set(run.data.metrics)
    assert run.data.tags["targeted"] == "true"
    assert run.data.tags["version.torch"]


def test_each_training_and_the_calibration_are_runs_of_their_own(finished: Finished) -> None:
    run, client = finished.mlflow_run(), mlflow.MlflowClient(finished.uri)
    query = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    nested = client.search_runs([run.info.experiment_id], query)
    assert {each.info.status for each in nested} == {"FINISHED"}
    kinds = Counter(each.data.tags["temperflow"] for each in nested)
    assert kinds["calibration"] == 1
    assert kinds["training"] >= 2
    [final] = [each for each in nested if each.data.params.get("final") == "True"]
    assert {"surrogate_loss", "posterior_loss", "seconds"} <= set(final.data.metrics)
    [calibration] = [each for each in nested if each.data.tags["temperflow"] == "calibration"]
    assert {"sbc_p/prior/a", "sbc_p/tempered/b", "held_out_score"} <= set(calibration.data.metrics)


def test_the_registered_model_answers(finished: Finished) -> None:
    mlflow.set_tracking_uri(finished.uri)
    model = mlflow.pyfunc.load_model("models:/small@champion")
    x = pd.DataFrame([[0.5, -0.3, 0.1], [0.0, 0.0, 0.0]], columns=["x0", "x1", "x2"])
    draws = model.predict(x, params={"beta": 0.5, "num_samples": 50, "seed": 7})
    assert list(draws.columns) == ["row", "a", "b"]
    assert draws["row"].value_counts().to_dict() == {0: 50, 1: 50}
    expected = finished.result.posterior.sample_batched((50,), torch.tensor(x.to_numpy()), beta=0.5, seed=7)
    # Drawn in NumPy and in torch, in single precision: the same to some units in the seventh digit of their scale.
    np.testing.assert_allclose(draws.loc[draws["row"] == 1, ["a", "b"]], expected[:, 1], rtol=1e-4, atol=1e-5)
    with pytest.raises(mlflow.MlflowException, match="outside the trained range"):
        model.predict(x, params={"beta": 9.0})
    assert not list(Path(mlflow.artifacts.download_artifacts("models:/small/1")).rglob("*.pkl"))


def test_the_explorer_takes_the_run_and_the_registered_model(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", finished.uri)
    run, model = load_explored(str(finished.result.directory)), load_explored("models:/small/1")
    for explored in (run, model):
        assert explored.observed
        np.testing.assert_allclose(explored.observation.x, [0.5, -0.3, 0.1])
        draws = explored.posterior.sample((20,), beta=0.5, seed=1)
        torch.testing.assert_close(draws, finished.result.posterior.sample((20,), beta=0.5, seed=1))
    assert run.bank is not None
    assert len(run.bank) == 5 * 400
    assert run.recommendation is not None
    assert len(run.checks) == 2
    assert model.bank is None


def test_running_again_simulates_nothing_and_gives_the_same_answer(finished: Finished) -> None:
    before = finished.rows()
    again = Campaign.from_file(finished.config, directory=finished.result.directory).run(progress=False)
    pd.testing.assert_frame_equal(finished.rows(), before)
    assert again.mlflow_run_id == finished.result.mlflow_run_id
    assert len(mlflow.MlflowClient(finished.uri).search_model_versions("name = 'small'")) == 1
    first, second = (result.posterior.sample((10,), seed=0) for result in (finished.result, again))
    torch.testing.assert_close(first, second)


def test_a_larger_budget_continues(tmp_path: Path) -> None:
    config = write_campaign(tmp_path, budget={"simulations": 150})
    Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    before = pd.read_parquet(tmp_path / "run" / "simulations").set_index("id")
    Campaign.from_file(config, ["budget.simulations=220"], tmp_path / "run").run(progress=False)
    after = pd.read_parquet(tmp_path / "run" / "simulations").set_index("id")
    assert len(after) == 220
    pd.testing.assert_frame_equal(after.loc[before.index], before)


def test_a_campaign_that_fails_before_it_begins_lets_others_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write_campaign(tmp_path, budget={"simulations": 100})

    def failing(*_: object) -> None:
        raise ValueError("no address")

    campaign = Campaign.from_file(config, directory=tmp_path / "run")
    monkeypatch.setattr("orchestrator.campaign.Tracker", failing)
    with pytest.raises(ValueError, match="no address"):
        campaign.run(progress=False)
    monkeypatch.undo()
    # The first one is still there, and may be for long in a notebook.
    assert Campaign.from_file(config, directory=tmp_path / "run").simulate(progress=False) > 0
    assert campaign.run_directory.exists


@pytest.mark.parametrize(
    ("override", "changed"),
    [("seed=4", "seed"), ("temperature.low=0.2", "temperature"), ("simulator.function=model.py:slow", "simulator")],
)
def test_a_run_directory_of_another_configuration_is_refused(finished: Finished, override: str, changed: str) -> None:
    before = finished.rows()
    campaign = Campaign.from_file(finished.config, [override], finished.result.directory)
    with pytest.raises(RunDirectoryError, match=f"another configuration: {changed} changed"):
        campaign.run(progress=False)
    pd.testing.assert_frame_equal(finished.rows(), before)


def test_the_order_of_parameters_is_that_of_thetas_columns(finished: Finished, tmp_path: Path) -> None:
    values = yaml.safe_load(finished.config.read_text())
    values["parameters"] = dict(reversed(values["parameters"].items()))
    values["simulator"]["function"] = f"{finished.folder / 'model.py'}:simulate"
    values["observation"] = str(finished.folder / "x_o.csv")
    reordered = tmp_path / "campaign.yaml"
    reordered.write_text(yaml.safe_dump(values, sort_keys=False))
    with pytest.raises(RunDirectoryError, match="the order of parameters changed"):
        Campaign.from_file(reordered, directory=finished.result.directory).run(progress=False)
    assert load_explored(str(finished.result.directory)).posterior.names == ("a", "b")


def test_a_check_without_the_priors_density_keeps_what_the_campaign_found(tmp_path: Path) -> None:
    modes = torch.distributions.Independent(torch.distributions.Normal(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 1.0), 1)
    prior = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(2)), modes)
    result = Campaign(
        lambda theta: theta + np.random.normal(size=2),
        prior,
        observation=[0.3, -0.3],
        budget=250,
        directory=tmp_path / "run",
        learner=QUICK,
        calibration={"share": 0.3, "draws": 50},
        tracking={"enabled": False},
    ).run(progress=False)
    assert [found.kind for found in result.checks] == ["prior", "tempered"]
    # The prior is a program's, and a saved posterior does not hold it.
    loaded = TemperedPosterior.load(tmp_path / "run")
    again = checking.check(RunDirectory(tmp_path / "run"), loaded, draws=100, seed=5)
    assert again[1] == result.checks[1]
    assert again[0].ranks != result.checks[0].ranks


def test_a_budget_that_cannot_be_learned_from_is_refused_before_it_is_spent(tmp_path: Path) -> None:
    settings = {"acquisition": {"method": "prior"}, "calibration": {"share": 0.2, "draws": 50}}
    config = write_campaign(tmp_path, budget={"simulations": 60}, **settings)
    with pytest.raises(ConfigError, match=r"budget\.simulations: at least 50 .* of 60 12 are kept to check .* 0 that"):
        Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    assert not (tmp_path / "run").exists()
    assert Campaign.from_file(config, directory=tmp_path / "run").simulate(progress=False) == 54


def test_what_is_simulated_first_and_learned_from_later_is_checked_too(tmp_path: Path) -> None:
    config = write_campaign(tmp_path, acquisition={"method": "prior"})
    campaign = Campaign.from_file(config, directory=tmp_path / "run")
    # A share of 0.2, half of it near the observation, where a posterior must be first.
    assert campaign.simulate(progress=False) == 270
    kinds = Counter(pd.read_parquet(tmp_path / "run" / "simulations")["proposal"])
    assert kinds == {"prior": 240, "calibration-prior": 30}
    result = Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    kinds = Counter(result.simulations()["proposal"])
    assert kinds == {"prior": 240, "calibration-prior": 30, "calibration-tempered": 30}
    assert [check.kind for check in result.checks] == ["prior", "tempered"]


def test_an_observation_of_another_length_keeps_what_was_simulated(tmp_path: Path) -> None:
    config = write_campaign(tmp_path, simulator={"function": "model.py:pair"})
    with pytest.raises(ObservationError, match=r"has 3 numbers, but the simulator returned 2"):
        Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    assert len(SimulationStore(tmp_path / "run" / "simulations")) >= 100
    # Once it is mended, they are learned from.
    (tmp_path / "x_o.csv").write_text("x\n0.5\n-0.3\n")
    result = Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    assert result.posterior.metadata["simulations"] > 200
    assert set(result.simulations()["status"]) == {"ok"}
    assert result.simulations()["x"].map(len).eq(2).all()
    # From now on it is this one.
    (tmp_path / "x_o.csv").write_text("x\n0.5\n-0.4\n")
    with pytest.raises(RunDirectoryError, match="observation changed"):
        Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)


def test_an_embedding_that_cannot_take_x_is_found_before_the_budget_is_spent(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import torch\n\ndef net():\n    return torch.nn.Linear(7, 2)\n")
    for learner, message in {
        "conv1d": "x has 3 numbers, which are not 2 series of equal length",
        "net.py:net": "embedding: Linear was called on x of shape",
    }.items():
        options = {**QUICK, "embedding": learner, **({"embedding_channels": 2} if learner == "conv1d" else {})}
        with pytest.raises(DataError, match=message):
            Campaign.from_file(write_campaign(tmp_path, learner=options), directory=tmp_path / "run")
    # Without an observation it is known at the first results.
    config = write_campaign(
        tmp_path, learner={**QUICK, "embedding": "conv1d", "embedding_channels": 2}, observation=None
    )
    with pytest.raises(DataError, match="x has 3 numbers, which are not 2 series"):
        Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    assert 0 < len(SimulationStore(tmp_path / "run" / "simulations")) < 300


def test_where_most_simulations_failed_a_warning_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "model2.py").write_text(
        "def simulate(theta):\n    assert theta[0] > 0.7, 'too low'\n    return theta\n"
    )
    config = write_campaign(
        tmp_path,
        simulator={"function": "model2.py:simulate"},
        acquisition={"method": "prior"},
        observation=None,
        budget={"simulations": 100},
    )
    Campaign.from_file(config, directory=tmp_path / "run").simulate(progress=False)
    [message] = [record.getMessage() for record in caplog.records if "of this run failed" in record.getMessage()]
    assert re.search(r"\d\d of the 100 simulations .*with 'raised: AssertionError: too low.*temperflow status", message)


def test_results_of_another_shape_are_failures(tmp_path: Path) -> None:
    config = write_campaign(tmp_path, simulator={"function": "model.py:ragged"}, observation=None)
    Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    rows = pd.read_parquet(tmp_path / "run" / "simulations").sort_values("id")
    assert set(rows["status"]) == {"ok", "wrong_shape"}
    assert rows.loc[rows["status"] == "ok", "x"].map(len).nunique() == 1
    assert rows.loc[rows["status"] == "wrong_shape", "reason"].str.contains("but earlier simulations returned").all()


def test_a_simulator_that_always_fails_ends_early_with_its_reason(tmp_path: Path) -> None:
    config = write_campaign(tmp_path, simulator={"function": "model.py:broken"})
    with pytest.raises(DataError, match=r"none of the last .*out of order"):
        Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    rows = pd.read_parquet(tmp_path / "run" / "simulations")
    assert 100 <= len(rows) < 300
    assert rows["reason"].str.contains("out of order").all()
    # Mended, the same campaign goes on, with what failed still in its store.
    model = tmp_path / "model.py"
    model.write_text(model.read_text() + "\nbroken = simulate\n")
    Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    after = pd.read_parquet(tmp_path / "run" / "simulations")
    assert len(after) == 300
    assert after["reason"].str.contains("out of order").sum() == len(rows)


MINE = """
class Evenly:
    def choose(self, candidates, n, pending, generator):
        assert len(candidates.success) == len(candidates.seconds) == len(candidates.u)
        return range(0, len(candidates.u), len(candidates.u) // n)[:n]
"""


def test_an_acquisition_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    config = write_campaign(tmp_path, acquisition={"method": "mine.py:Evenly"})
    result = Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    assert (result.simulations()["proposal"] == "acquisition").sum() > 5
    config = write_campaign(tmp_path, acquisition={"method": "evenly"})
    with pytest.raises(ConfigError, match="no method 'evenly'"):
        Campaign.from_file(config)


def test_a_campaign_ends_when_it_is_certain_enough(tmp_path: Path) -> None:
    config = write_campaign(
        tmp_path,
        budget={"simulations": 5000, "until": 1e6},
        calibration={"simulations": 30},
        learner={**QUICK, "members": ["linear", "gaussian"]},
    )
    result = Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    rows = result.simulations()
    assert len(rows) < 1000
    assert len(result.checks) == 2
    history = pd.read_json(tmp_path / "run" / "metrics.jsonl", lines=True)
    assert history["epistemic"].dropna().gt(0).any()
    assert history["acquisition_failed"].eq(0).all()
    # The same command finds it done.
    again = Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    assert len(again.simulations()) == len(rows)
    # Asked for more, it goes on.
    config = write_campaign(tmp_path, budget={"simulations": len(rows) + 50}, calibration={"simulations": 30})
    more = Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    assert len(more.simulations()) == len(rows) + 50


def test_where_most_simulations_fail_more_are_made_before_training(tmp_path: Path) -> None:
    config = write_campaign(tmp_path, simulator={"function": "model.py:rare"}, acquisition={"initial": 60})
    result = Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    rows = result.simulations()
    assert len(rows) == 300
    assert (rows["status"] == "ok").mean() < 0.6
    assert "tempered" in set(rows["proposal"])


def test_a_tracking_server_that_is_away_does_not_stop_a_campaign(tmp_path: Path) -> None:
    address = "127.0.0.1:9"
    config = write_campaign(tmp_path, tracking={"uri": f"http://me:sesame@{address}"}, budget={"simulations": 120})
    result = Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    assert result.mlflow_run_id is None
    assert (tmp_path / "run" / "report.html").exists()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert any(address.encode() in path.read_bytes() for path in files)
    assert not any(b"sesame" in path.read_bytes() for path in files)
    # What was to be told is still there; another store may have it.
    delivery = Delivery(tmp_path / "run", f"sqlite:///{tmp_path / 'mlflow.db'}")
    delivery.deliver()
    assert delivery.run_id is not None
    run = mlflow.MlflowClient(delivery.uri).get_run(delivery.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["simulations"] == 120


def test_a_python_callable_and_any_distribution(tmp_path: Path) -> None:
    scale = 0.5  # a closure travels to the workers

    def simulate(theta: np.ndarray, seed: int) -> dict[str, np.ndarray]:
        noise = np.random.default_rng(seed).normal(size=2)
        return {"level": theta + scale * noise, "sum": np.array([theta.sum()])}

    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    result = Campaign(
        simulate,
        prior,
        observation=[0.5, -0.3, 0.2],
        budget=150,
        directory=tmp_path / "run",
        learner=QUICK,
        tracking={"enabled": False},
    ).run(progress=False)
    assert result.posterior.sample((5,), beta=0.1).shape == (5, 2)
    assert len(result.simulations()) == 150


def test_a_callable_from_a_module_beside_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_beside_the_script.py").write_text("def simulate(theta):\n    return theta\n")
    monkeypatch.chdir(tmp_path.parent)
    monkeypatch.syspath_prepend(tmp_path.name)
    simulate = importlib.import_module("module_beside_the_script").simulate
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    settings = {"acquisition": {"method": "prior"}, "calibration": {"share": 0}, "tracking": {"enabled": False}}
    for budget in (10, 20):  # Another search path is no other campaign.
        campaign = Campaign(simulate, prior, budget=budget, directory=tmp_path / "run", **settings)
        assert campaign.simulate(progress=False) == budget
        monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path)])
    assert set(campaign.run_directory.store().read(["status"])["status"].to_pylist()) == {"ok"}


def test_an_amortized_campaign_of_a_task(tmp_path: Path) -> None:
    values = {
        "simulator": {"task": "two_moons"},
        "budget": {"simulations": 200},
        "learner": QUICK,
        "acquisition": {"method": "sobol"},
        "calibration": {"share": 0.2},
        "tracking": {"enabled": False},
    }
    path = tmp_path / "moons.yaml"
    path.write_text(yaml.safe_dump(values))
    result = Campaign.from_file(path, directory=tmp_path / "run").run(progress=False)
    assert set(result.simulations()["proposal"]) == {"sobol", "calibration-prior"}
    assert result.posterior.default_x is None
    assert [check.kind for check in result.checks] == ["prior"]
    with pytest.raises(ObservationError, match="pass x="):
        result.posterior.sample((3,))
    assert result.posterior.sample_batched((3,), torch.zeros(4, 2), beta=2.0).shape == (3, 4, 2)


def test_an_observation_that_comes_later_uses_what_is_simulated(tmp_path: Path) -> None:
    amortized = write_campaign(tmp_path, observation=None, budget={"simulations": 200})
    first = Campaign.from_file(amortized, directory=tmp_path / "run").run(progress=False)
    before = first.simulations().set_index("id").sort_index()
    assert first.posterior.default_x is None
    # One that cannot be meant leaves everything as it was.
    (tmp_path / "short.csv").write_text("x\n0.5\n")
    short = write_campaign(tmp_path, observation="short.csv", budget={"simulations": 200})
    with pytest.raises(ObservationError, match="has 1 numbers, but the simulator returned 3"):
        Campaign.from_file(short, directory=tmp_path / "run").run(progress=False)
    # Nothing more to simulate: it is trained anew, for the observation.
    config = write_campaign(tmp_path, budget={"simulations": 200})
    same = Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    assert same.posterior.default_x is not None
    assert len(same.simulations()) == 200
    config = write_campaign(tmp_path, budget={"simulations": 300})
    second = Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    after = second.simulations().set_index("id").sort_index()
    pd.testing.assert_frame_equal(after.loc[before.index], before)
    assert len(after) == 300
    assert {check.kind for check in second.checks} == {"prior", "tempered"}
    assert second.posterior.sample((3,), beta=0.5).shape == (3, 2)
    (tmp_path / "x_o.csv").write_text("x\n0.7\n-0.3\n0.1\n")
    with pytest.raises(RunDirectoryError, match="observation changed"):
        Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)


def test_several_observations_are_all_simulated_for(tmp_path: Path) -> None:
    (tmp_path / "first.csv").write_text("x\n1.2\n-1.2\n0\n")
    (tmp_path / "second.csv").write_text("x\n-1.2\n1.2\n0\n")
    config = write_campaign(
        tmp_path,
        observation={"file": "first.csv", "also": ["second.csv"]},
        acquisition={"method": "tempered"},
        # Good enough to tell the two apart: without the second, at most 2 % of the draws are nearer to it.
        learner={**QUICK, "members": ["linear"], "epochs": 200, "update_epochs": 60},
        # Narrow enough for the two not to overlap.
        temperature={"low": 0.5, "high": 2.0},
    )
    result = Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    np.testing.assert_allclose(result.posterior.default_x, [1.2, -1.2, 0.0])
    rows = result.simulations()
    theta = np.stack(rows[rows["proposal"] == "tempered"]["theta"].to_list())
    centers = np.array([[1.2, -1.2], [-1.2, 1.2]])
    nearest = np.square(theta[:, None] - centers).sum(axis=2).argmin(axis=1)
    assert 0.3 < nearest.mean() < 0.7
    (tmp_path / "second.csv").write_text("x\n-1\n1.2\n")
    with pytest.raises(ObservationError, match=r"expected 3 numbers in each observation.*got 2 in second\.csv"):
        Campaign.from_file(config, directory=tmp_path / "other")


def test_further_observations_need_a_first(tmp_path: Path) -> None:
    with pytest.raises(ObservationError, match="give one"):
        Campaign("two_moons", also=[[0.0, 0.0]], directory=tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prior": torch.distributions.Normal(torch.zeros(2), 1.0)}, "brings its own prior"),
        ({"observation": [0.0, np.nan]}, "`observation` has 1 NaN or infinite"),
        ({"observation": [0.0, 1.0], "also": [[0.0, np.inf]]}, r"also\[0\] has 1 NaN or infinite"),
        ({"reference": {"nobody": {"mean": 0.0, "std": 1.0}}}, "no parameter nobody"),
    ],
)
def test_arguments_are_checked_as_a_file_is(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ObservationError), match=message):
        Campaign("two_moons", directory=tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_a_time_budget_ends_the_simulating(tmp_path: Path) -> None:
    config = write_campaign(
        tmp_path,
        simulator={"function": "model.py:slow"},
        budget={"hours": 5 / 3600},
        parameters={"a": NORMAL, "b": NORMAL},
    )
    Campaign.from_file(config, directory=tmp_path / "run").run(progress=False)
    records = json.loads((tmp_path / "run" / "campaign.json").read_text())
    assert "finished" in records
    kinds = Counter(pd.read_parquet(tmp_path / "run" / "simulations")["proposal"])
    learned = sum(n for kind, n in kinds.items() if not kind.startswith("calibration"))
    assert learned >= 50
    # A share of 0.2, half of it for each population.
    assert kinds["calibration-prior"] == kinds["calibration-tempered"] == min(200, int(0.1 * learned))


def test_a_budget_of_simulators_time_is_spent_once_and_can_be_raised(tmp_path: Path) -> None:
    def campaign(budget: float) -> Campaign:
        config = write_campaign(
            tmp_path,
            simulator={"function": "model.py:slow"},
            budget={"simulator_hours": budget / 3600},
            parameters={"a": NORMAL, "b": NORMAL},
        )
        return Campaign.from_file(config, directory=tmp_path / "run")

    def learned() -> pd.Series:
        rows = pd.read_parquet(tmp_path / "run" / "simulations")
        return rows["seconds"][~rows["proposal"].str.startswith("calibration")]

    # Each takes 0.02 s at least: what is paid for can be counted.
    campaign(4.0).simulate(progress=False)
    number = len(learned())
    assert learned().sum() >= 4.0
    assert number <= 4.0 / 0.02 + 1
    # Nothing is left for `run` but to learn, and to check what was learned.
    for _ in range(2):
        result = campaign(4.0).run(progress=False)
        assert result.posterior.metadata["simulations"] == len(learned()) == number
    result = campaign(8.0).run(progress=False)
    assert result.posterior.metadata["simulations"] == len(learned()) <= 8.0 / 0.02 + 1
    assert learned().sum() >= 8.0
