"""What a campaign tells MLflow arrives: in order, once, whatever happens to the server or to the campaign."""

from __future__ import annotations

import base64
import http.server
import json
import logging
import os
import shlex
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import pytest
from mlflow.entities import Run
from mlflow_servers import Child, postgresql, tracking_server
from waiting import processes_with, wait_until

from orchestrator.checking import CheckResult
from orchestrator.courier import locked, pause
from orchestrator.delivery import Delivery, Unavailable
from orchestrator.tracked_calibration import track_checks
from orchestrator.tracking import Tracker
from orchestrator.tracking_journal import Journal, read_progress, records_after
from orchestrator.tracking_names import as_name
from orchestrator.tracking_records import Artifact, Metrics, Model
from orchestrator.tracking_trust import sync_command, trusted
from orchestrator.tracking_uri import default_uri, redacted, without_secret
from simulators.errors import ConfigError, TrackingError

SECRET = "correct horse"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """A server with sqlite that tests may kill, if they start it again."""
    child = tracking_server(tmp_path_factory.mktemp("sqlite"))
    child.start()
    yield child
    child.kill()


@pytest.fixture(scope="module")
def postgresql_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    """The same with PostgreSQL."""
    with postgresql() as store:
        child = tracking_server(tmp_path_factory.mktemp("postgresql"), store)
        child.start()
        yield child
        child.kill()


def tracker(folder: Path, uri: str) -> Tracker:
    folder.mkdir(exist_ok=True)
    return Tracker(folder, uri, "tests", folder.name)


def untended(folder: Path, uri: str) -> Tracker:
    """A tracker without the process that delivers."""
    folder.mkdir(exist_ok=True)
    told = Tracker(folder, uri, f"tests in {folder.parent.name}", folder.name, enabled=False)
    told._journal = Journal(folder / "tracking")
    told._begin("campaign", folder.name, "campaign")
    return told


def run_of(folder: Path, server: Child) -> Run:
    run_id = read_progress(folder / "tracking", server.uri).runs["campaign"]
    return mlflow.MlflowClient(server.uri).get_run(run_id)


def nested_of(run: Run, server: Child) -> dict[str, Run]:
    query = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    found = mlflow.MlflowClient(server.uri).search_runs([run.info.experiment_id], query)
    return {str(nested.info.run_name): nested for nested in found}


def history(run: Run, server: Child, key: str) -> list[tuple[int, float]]:
    found = mlflow.MlflowClient(server.uri).get_metric_history(run.info.run_id, key)
    return [(metric.step, metric.value) for metric in found]


def offset(folder: Path, uri: str) -> int:
    return read_progress(folder / "tracking", uri).offset


def test_what_is_told_is_there(tmp_path: Path, server: Child) -> None:
    run = tmp_path / "told"
    told = tracker(run, server.uri)
    told.params({"section": {"key": 1, "list": [1, 2]}, **{f"p{i}": i for i in range(150)}, "long": "x" * 9000})
    told.tags({"colour": "blue"})
    told.metrics(
        {"loss": 2.0, "not finite": float("nan"), "infinite": float("inf"), "name, with (signs)": 1.0}, step=10
    )
    told.metrics({"loss": 1.0}, step=20, at=1e9)
    (run / "figure.png").write_bytes(b"not really")
    told.artifact(run / "figure.png", "figures")
    told.artifact(run / "nowhere.png", "figures")
    told.text("a: 1\n", "config.yaml")
    told.dataset("s3://bucket/simulations", "0123456789abcdef" * 4, 300)
    with told.nested("update-10", "training", "training") as nested:
        nested.params({"rows": 10})
        nested.metrics({"surrogate_loss": 0.5}, step=10)
    with pytest.raises(ZeroDivisionError), told.nested("calibration", "calibration", "calibration"):
        raise ZeroDivisionError
    told.close("FINISHED", 60)
    found = run_of(run, server)
    assert told.link == {"uri": server.uri, "run_id": found.info.run_id}
    assert (found.info.status, found.info.run_name) == ("FINISHED", "told")
    assert {"section.key": "1", "section.list": "[1, 2]", "p149": "149"}.items() <= found.data.params.items()
    assert found.data.params["long"] == "x" * 6000
    assert {"colour": "blue", "temperflow": "campaign", "simulations.rows": "300"}.items() <= found.data.tags.items()
    assert set(found.data.metrics) == {"loss", as_name("name, with (signs)")}
    assert history(found, server, "loss") == [(20, 1.0), (10, 2.0)]  # by time
    client = mlflow.MlflowClient(server.uri)
    assert [entry.path for entry in client.list_artifacts(found.info.run_id, "figures")] == ["figures/figure.png"]
    assert Path(client.download_artifacts(found.info.run_id, "config.yaml", str(tmp_path))).read_text() == "a: 1\n"
    [used] = found.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == ("simulations", "0123456789abcdef" * 2)
    assert json.loads(used.dataset.source) == {"uri": "s3://bucket/simulations"}
    assert json.loads(used.dataset.profile) == {"num_rows": 300}
    nested_runs = nested_of(found, server)
    assert {name: run.info.status for name, run in nested_runs.items()} == {
        "training": "FINISHED",
        "calibration": "FAILED",
    }
    assert nested_runs["training"].data.params == {"rows": "10"}
    assert nested_runs["training"].data.metrics == {"surrogate_loss": 0.5}


def test_parameters_of_any_name_are_told_apart(tmp_path: Path, server: Child) -> None:
    run = tmp_path / "names"
    told = untended(run, server.uri)
    names = ["a+b", "a*b", "a_b", "rate/", "rate", "..", "x/y", "x" * 300, "x" * 301, "ö"]
    told.params({"parameters": {name: {"loc": i} for i, name in enumerate(names)}})
    ranks = [[0.5] * len(names)] * 3
    check = CheckResult("prior", "the prior", ranks, [0.01 * i for i in range(len(names))], 3.0, True)
    track_checks(told, told, [check], names, None, 1)
    Delivery(run, server.uri).deliver()
    data = run_of(run, server).data
    p_values = {key: value for key, value in data.metrics.items() if key.startswith("sbc_p/prior/")}
    assert sorted(p_values.values()) == check.p_values
    assert all(key.count("/") == 2 for key in p_values)
    assert p_values["sbc_p/prior/rate"] == check.p_values[4]
    assert p_values["sbc_p/prior/ö"] == check.p_values[9]
    assert sorted(data.params.values()) == [str(i) for i in range(len(names))]
    assert {"parameters.rate.loc", "parameters.a_b.loc"} < set(data.params)


@pytest.mark.parametrize("experiment", ["/etc/x", "../../x", "a/b", "plain name"])
def test_files_of_an_experiment_lie_beside_its_store(experiment: str, tmp_path: Path) -> None:
    folder, uri = tmp_path / "run", f"sqlite:///{tmp_path / 'mlflow.db'}"
    folder.mkdir()
    told = Tracker(folder, uri, experiment, "run", enabled=False)
    told._journal = Journal(folder / "tracking")
    told._begin("campaign", "run", "campaign")
    told.text("hello", "hello.txt")
    Delivery(folder, uri).deliver()
    found = mlflow.MlflowClient(uri).get_experiment_by_name(experiment)
    assert found is not None
    place = Path(unquote(urlsplit(str(found.artifact_location)).path))
    assert place.parent == tmp_path / "mlartifacts"
    assert [path.name for path in place.rglob("*.txt")] == ["hello.txt"]
    assert experiment != "plain name" or place.name == experiment


def test_files_of_the_users_folder_are_not_taken_for_pythons_own(
    tmp_path: Path, server: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random.py").write_text("raise RuntimeError('not the one')\n")
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "beside"
    told = tracker(run, server.uri)
    told.metrics({"loss": 1.0}, step=10)
    told.close("FINISHED", 60)
    assert history(run_of(run, server), server, "loss") == [(10, 1.0)]


@pytest.mark.parametrize("database", ["server", "postgresql_server"])
def test_a_server_killed_in_between_gets_each_record_once(
    database: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: Child = request.getfixturevalue(database)
    run = tmp_path / "killed"
    told = tracker(run, server.uri)
    written = 0

    def write(many: int) -> None:
        nonlocal written
        for _ in range(many):
            told.metrics({"a": float(written), "b": -float(written)}, step=written, at=1e9 + written)
            written += 1

    write(3000)
    # Some requests have been answered, and one is under way.
    wait_until(lambda: offset(run, server.uri) > 0)
    server.kill()
    write(500)
    server.start()
    told.close("FINISHED", 100)
    found = run_of(run, server)
    assert found.info.status == "FINISHED"
    for key, sign in ("a", 1.0), ("b", -1.0):
        assert history(found, server, key) == [(i, sign * i) for i in range(written)]
    same = f"tags.`temperflow.key` = '{found.data.tags['temperflow.key']}'"
    assert len(mlflow.MlflowClient(server.uri).search_runs([found.info.experiment_id], same)) == 1


def test_a_run_that_was_made_twice_is_there_once(tmp_path: Path, server: Child) -> None:
    run = tmp_path / "repeated"
    told = tracker(run, server.uri)
    wait_until(lambda: told.link is not None)
    first, client = run_of(run, server), mlflow.MlflowClient(server.uri)
    # As of a request whose answer came too late.
    tags = {"temperflow.key": first.data.tags["temperflow.key"]}
    second = client.create_run(first.info.experiment_id, tags=tags)
    other = client.create_run(first.info.experiment_id, tags={"temperflow.key": "another/campaign"})
    told.close("FINISHED", 60)
    stages = [client.get_run(each.info.run_id).info.lifecycle_stage for each in (first, second, other)]
    assert stages == ["active", "deleted", "active"]


@pytest.mark.parametrize("database", ["server", "postgresql_server"])
def test_delivered_twice_is_there_once(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    server: Child = request.getfixturevalue(database)
    run = tmp_path / "twice"
    told = tracker(run, server.uri)
    for step in range(30):
        told.metrics({"zero": 0.0, "value": 0.1 + step}, step)
    told.params({"p": 1})
    told.dataset("/simulations", "ab" * 32, 3)
    with told.nested("calibration", "calibration", "calibration") as nested:
        nested.metrics({"p": 0.5}, 1)
    told.close("FINISHED", 60)
    before = run_of(run, server)
    # As if no answer had ever come.
    (run / "tracking" / "delivered.json").unlink()
    assert Delivery(run, server.uri).deliver() > 30
    after = run_of(run, server)
    assert after.info.run_id == before.info.run_id
    assert after.info.status == "FINISHED"
    assert after.data.to_dictionary() == before.data.to_dictionary()
    assert len(after.inputs.dataset_inputs) == 1
    assert history(after, server, "value") == [(step, 0.1 + step) for step in range(30)]
    assert history(after, server, "zero") == [(step, 0.0) for step in range(30)]
    [nested_run] = nested_of(after, server).values()
    assert history(nested_run, server, "p") == [(1, 0.5)]


def test_while_the_server_is_out_records_are_kept_and_sync_delivers_them(
    tmp_path: Path, server: Child, caplog: pytest.LogCaptureFixture, temperflow: Callable[..., tuple[int, str]]
) -> None:
    server.kill()
    run = tmp_path / "out"
    told = tracker(run, server.uri)
    for step in range(100):
        told.metrics({"value": float(step)}, step)
    told.close("FINISHED", 60)
    assert told.link is None
    assert "temperflow sync" in caplog.text
    campaign = {"format": 1, "config": {"tracking": {"enabled": True, "uri": server.uri}}}
    (run / "campaign.json").write_text(json.dumps(campaign))
    code, text = temperflow("sync", run)
    assert code == 1
    assert "does not take records" in text
    assert "Traceback" not in text
    server.start()
    code, text = temperflow("sync", run)
    assert code == 0
    assert "102 records" in text
    found = run_of(run, server)
    assert found.info.status == "FINISHED"
    assert history(found, server, "value") == [(step, float(step)) for step in range(100)]
    code, text = temperflow("sync", run)
    assert code == 0
    assert "0 records" in text


def recorded(folder: Path, uri: str) -> Path:
    """A run directory with two records for that address."""
    told = untended(folder, uri)
    told.metrics({"value": 1.0}, 1)
    told.end("FINISHED")
    campaign = {"format": 1, "config": {"tracking": {"enabled": True, "uri": uri}}, "tracking": uri}
    (folder / "campaign.json").write_text(json.dumps(campaign))
    return folder


def test_sync_takes_no_files_from_outside_the_run_directory(
    tmp_path: Path, server: Child, caplog: pytest.LogCaptureFixture, temperflow: Callable[..., tuple[int, str]]
) -> None:
    run, secret = tmp_path / "strange", tmp_path / "key.txt"
    secret.write_text(SECRET)
    recorded(run, server.uri)
    (run / "link.txt").symlink_to(secret)
    (run / "own.txt").write_text("own")
    (tmp_path / "posterior").mkdir()
    (run / "models").mkdir()
    (run / "models" / "posterior.json").symlink_to(secret)
    journal = Journal(run / "tracking")
    for path in (str(secret), "../key.txt", "link.txt", "own.txt"):
        journal.append(Artifact(path=path, folder=None))
    for folder in (str(tmp_path / "posterior"), "../posterior", "models"):
        journal.append(Model(directory=folder, digest="", name="strange"))
    journal.close()
    code, text = temperflow("sync", run)
    assert code == 0, text
    client, run_id = mlflow.MlflowClient(server.uri), run_of(run, server).info.run_id
    assert [entry.path for entry in client.list_artifacts(run_id)] == ["own.txt"]
    assert not client.search_registered_models("name = 'strange'")
    assert caplog.text.count("outside the run directory") == 6


class Listener(http.server.ThreadingHTTPServer):
    """Remembers what it was sent."""

    def __init__(self) -> None:
        heard = self.heard = list[str]()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                heard.append(self.headers.get("Authorization", ""))
                self.send_error(500)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Not into the test's output."""

        super().__init__(("127.0.0.1", 0), Handler)
        self.uri = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


def test_sync_sends_credentials_only_where_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperflow: Callable[..., tuple[int, str]]
) -> None:
    strange = Listener()
    run = recorded(tmp_path / "strange", strange.uri)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    code, text = temperflow("sync", run)
    assert code == 1
    assert f"`temperflow sync {run} --uri {strange.uri}`" in text
    assert not strange.heard
    assert temperflow("sync", run, "--uri", strange.uri)[0] == 1  # It takes no records.
    assert strange.heard[0] == f"Bearer {SECRET}"
    strange.heard.clear()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", strange.uri + "/")
    assert "does not take records" in temperflow("sync", run)[1]
    assert strange.heard
    strange.shutdown()
    code, text = temperflow("sync", run, "--uri", "https://me:open/sesame@host")
    assert code == 1
    assert "--uri: expected a server's address" in text


@pytest.mark.parametrize(
    ("uri", "ask"),
    [
        ("https://mlflow.example.org", True),
        ("postgresql://me@db/mlflow", True),
        ("databricks", True),
        ("databricks://profile", True),
        ("http://localhost:5000", False),
        ("http://[::1]:5000/base", False),
        ("http://localhost.example.org", True),
        ("sqlite:///{folder}/mlflow.db", False),
        ("file://{folder}/mlruns", False),
        ("{folder}/mlruns", False),
        ("sqlite:///{folder}/run/mlflow.db", True),  # came with the run directory
        ("file://{folder}/run/mlruns", True),
        ("sqlite:////etc/hosts", True),  # somebody else's
        ("sqlite:///file:{folder}/run/mlflow.db?uri=true", True),
    ],
)
def test_which_address_of_a_run_directory_is_taken_without_asking(
    uri: str, ask: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri, run = uri.format(folder=tmp_path), tmp_path / "run"
    for name in [name for name in os.environ if name.startswith("MLFLOW_TRACKING_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    if uri == "sqlite:////etc/hosts":
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert sync_command(run, uri) == f"temperflow sync {run}" + f" --uri {shlex.quote(uri)}" * ask
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert trusted(uri, run)


def test_a_server_on_this_machine_gets_no_credentials_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert trusted("http://localhost:5000", tmp_path / "run")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "alice")
    assert not trusted("http://localhost:5000", tmp_path / "run")
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow" / "credentials").touch()
    assert not trusted("http://localhost:5000", tmp_path / "run")


CAMPAIGN = """
import sys, time
from pathlib import Path
from orchestrator.tracking import Tracker

folder, uri = Path(sys.argv[1]), sys.argv[2]
told = Tracker(folder, uri, "tests", "process")
told.begin("update-1", "training", "training")
told.metrics({"value": 1.0}, 1)
while True:
    time.sleep(1)
"""


def test_a_killed_campaign_is_marked_and_the_next_process_continues_its_run(tmp_path: Path, server: Child) -> None:
    run = tmp_path / "continued"
    run.mkdir()
    process = subprocess.Popen([sys.executable, "-c", CAMPAIGN, str(run), server.uri])
    try:
        wait_until(lambda: bool(nested_runs_of(run, server)))
    finally:
        process.kill()
        process.wait()
    # The process that delivers sees it, says so, and ends.
    wait_until(lambda: run_of(run, server).info.status == "KILLED")
    wait_until(lambda: not processes_with(str(run)))
    assert {nested.info.status for nested in nested_of(run_of(run, server), server).values()} == {"KILLED"}
    told = tracker(run, server.uri)
    told.metrics({"value": 2.0}, 2)
    wait_until(lambda: run_of(run, server).info.status == "RUNNING")
    # The training that was interrupted is done again, in its own run.
    with told.nested("update-1", "training", "training") as nested:
        nested.metrics({"loss": 1.0}, 2)
    told.close("FINISHED", 60)
    found = run_of(run, server)
    assert found.info.status == "FINISHED"
    assert history(found, server, "value") == [(1, 1.0), (2, 2.0)]
    [training] = nested_of(found, server).values()
    assert training.info.status == "FINISHED"


def nested_runs_of(run: Path, server: Child) -> dict[str, Run]:
    known = read_progress(run / "tracking", server.uri).runs
    return nested_of(run_of(run, server), server) if "update-1" in known else {}


def test_a_server_that_lost_everything_gets_everything(tmp_path: Path, server: Child) -> None:
    run = tmp_path / "lost"
    told = tracker(run, server.uri)
    told.metrics({"value": 1.0}, 1)
    told.close("FINISHED", 60)
    first = run_of(run, server).info.run_id
    mlflow.MlflowClient(server.uri).delete_run(first)
    told = tracker(run, server.uri)
    told.metrics({"value": 2.0}, 2)
    told.close("FINISHED", 60)
    found = run_of(run, server)
    assert found.info.run_id != first
    assert history(found, server, "value") == [(1, 1.0), (2, 2.0)]


def test_what_is_refused_for_good_does_not_hold_up_the_rest(
    tmp_path: Path, server: Child, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "refused"
    told = untended(run, server.uri)
    told.metrics({"before": 1.0}, 1)
    told.write(Metrics(step=1, time=-5, values={"too early": 1.0}))
    told.metrics({"between": 1.0}, 1)
    told.text("never", "../outside.txt")  # an error of the server, as it says
    told.metrics({"after": 1.0}, 1)
    delivery = Delivery(run, server.uri)
    failures = 0
    for _ in range(50):
        try:
            delivery.deliver()
            break
        except Unavailable:
            failures += 1
    assert 1 < failures < 50
    assert set(run_of(run, server).data.metrics) == {"before", "between", "after"}
    assert "refuses a record of kind 'metrics'" in caplog.text
    assert "refuses a record of kind 'text'" in caplog.text


def test_an_overloaded_server_loses_nothing(tmp_path: Path, server: Child, caplog: pytest.LogCaptureFixture) -> None:
    overloads = 25  # more than a record that is refused alone is tried
    proxy = GuardServer(server.uri, None, overloads)
    run = tmp_path / "overloaded"
    told = untended(run, proxy.uri)
    told.metrics({"value": 1.0}, 1)
    told.metrics({"value": 2.0}, 2)
    delivery = Delivery(run, proxy.uri)
    for _ in range(overloads):
        with pytest.raises(Unavailable, match="QueuePool"):
            delivery.deliver()
    delivery.deliver()
    proxy.shutdown()
    assert proxy.overloads == 0
    run_id = read_progress(run / "tracking", proxy.uri).runs["campaign"]
    assert history(mlflow.MlflowClient(server.uri).get_run(run_id), server, "value") == [(1, 1.0), (2, 2.0)]
    assert "refuses" not in caplog.text


@pytest.mark.parametrize(
    ("seconds", "failures", "expected"),
    [(0.1, 0, 1.0), (2.0, 0, 8.0), (30.0, 0, 15.0), (0.0, 5000, 15.0), (0.0, 2, 4.0)],
)
def test_pauses_leave_a_slow_server_room(seconds: float, failures: int, expected: float) -> None:
    pauses = [pause(seconds, failures) for _ in range(100)]
    assert 0.8 * expected <= min(pauses) < max(pauses) <= 1.2 * expected


def test_changed_parameters_are_tags(tmp_path: Path, server: Child) -> None:
    run = tmp_path / "changed"
    for budget in 100, 200:
        told = tracker(run, server.uri)
        told.params({"budget": budget, "seed": 1})
        told.close("FINISHED", 60)
    data = run_of(run, server).data
    assert data.params == {"budget": "100", "seed": "1"}
    assert data.tags["changed.budget"] == "200"
    assert "changed.seed" not in data.tags


def test_32_campaigns_at_once(tmp_path: Path, server: Child) -> None:
    folders = [tmp_path / f"campaign {i}" for i in range(32)]
    for folder in folders:
        told = untended(folder, server.uri)
        for step in range(50):
            told.metrics({"value": float(step), "other": 1.0}, step)
        told.end("FINISHED")

    def deliver(folder: Path) -> None:
        delivery = Delivery(folder, server.uri)
        for attempt in range(5):
            try:
                delivery.deliver()
                return
            except Unavailable:  # MLflow's server may run out of connections to its database.
                assert attempt < 4
                time.sleep(pause(0.0, attempt))  # As the courier does: at once they would meet again.

    with ThreadPoolExecutor(32) as pool:
        list(pool.map(deliver, folders))
    client = mlflow.MlflowClient(server.uri)
    experiment = client.get_experiment_by_name(f"tests in {tmp_path.name}")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert Counter(run.info.run_name for run in runs) == Counter(folder.name for folder in folders)
    for run in runs:
        assert run.info.status == "FINISHED"
        assert history(run, server, "value") == [(step, float(step)) for step in range(50)]


def test_one_process_delivers(tmp_path: Path, server: Child) -> None:
    told = tracker(tmp_path / "one", server.uri)
    wait_until(lambda: told.link is not None)
    with pytest.raises(TrackingError, match="another process"), locked(tmp_path / "one"):
        pass
    told.close("KILLED", 60)
    with locked(tmp_path / "one"):
        pass
    assert run_of(tmp_path / "one", server).info.status == "KILLED"


def test_a_torn_or_damaged_record_costs_only_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = Metrics(step=1, time=1, values={"value": 1.0})
    journal = Journal(tmp_path)
    journal.append(record)
    journal.close()
    path = tmp_path / "journal.jsonl"
    with path.open("ab") as file:
        file.write(b'{"kind":"metrics","st')  # a process killed while writing
    assert len(list(records_after(tmp_path, 0))) == 1
    journal = Journal(tmp_path)
    journal.append(record)
    journal.close()
    assert [found for found, _ in records_after(tmp_path, 0)] == [record, record]
    assert "damaged" in caplog.text
    [first, second] = [end for _, end in records_after(tmp_path, 0)]
    assert [end for _, end in records_after(tmp_path, first)] == [second]
    assert not list(records_after(tmp_path, second))


#: What MLflow 3.17 answers when as many requests as it has connections to its database wait for another.
OVERLOAD = {
    "error_code": "BAD_REQUEST",
    "message": "QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout 30.00",
}


class Guard(http.server.BaseHTTPRequestHandler):
    """A proxy that lets through whoever has the right `Authorization`, and may be overloaded."""

    server: GuardServer  # type: ignore[assignment]

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != self.server.expected:
            self.send_error(401)
            return
        if self.path.endswith("/log-batch") and self.server.overloads > 0:
            self.server.overloads -= 1
            self._answer(400, "application/json", json.dumps(OVERLOAD).encode())
            return
        url = self.server.behind + self.path
        kept = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "authorization", "content-length")}
        request = urllib.request.Request(url, body or None, kept, method=self.command)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                status, kind, content = answer.status, answer.headers["Content-Type"], answer.read()
        except urllib.error.HTTPError as error:
            status, kind, content = error.code, error.headers["Content-Type"], error.read()
        self._answer(status, kind, content)

    def _answer(self, status: int, kind: str | None, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind or "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _pass_on  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Not into the test's output."""


class GuardServer(http.server.ThreadingHTTPServer):
    def __init__(self, behind: str, expected: str | None, overloads: int = 0) -> None:
        super().__init__(("127.0.0.1", 0), Guard)
        self.behind, self.expected, self.overloads = behind, expected, overloads
        self.uri = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, daemon=True).start()


BASIC = "Basic " + base64.b64encode(f"alice:{SECRET}".encode()).decode()
CREDENTIALS = {
    "in the address": (BASIC, "alice:correct%20horse@", {}),
    "user and password": (BASIC, "", {"MLFLOW_TRACKING_USERNAME": "alice", "MLFLOW_TRACKING_PASSWORD": SECRET}),
    "token": (f"Bearer {SECRET}", "", {"MLFLOW_TRACKING_TOKEN": SECRET}),
}


@pytest.mark.parametrize("way", CREDENTIALS)
def test_credentials_open_the_server_and_are_written_nowhere(
    way: str, tmp_path: Path, server: Child, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, user, environment = CREDENTIALS[way]
    guard = GuardServer(server.uri, expected)
    host = f"127.0.0.1:{guard.server_port}"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "guarded"
    told = tracker(run, f"http://{user}{host}")
    told.metrics({"value": 1.0}, 1)
    told.text("hello", "hello.txt")
    told.close("FINISHED", 60)
    guard.shutdown()
    assert told.link is not None
    assert told.link["uri"] == f"http://{host}"
    found = mlflow.MlflowClient(server.uri).get_run(told.link["run_id"])
    assert found.info.status == "FINISHED"
    for path in run.rglob("*"):
        if path.is_file():
            assert not any(secret in path.read_bytes() for secret in (SECRET.encode(), b"correct%20horse"))


def test_wrong_credentials_lose_nothing_and_are_told_without_the_secret(
    tmp_path: Path, server: Child, caplog: pytest.LogCaptureFixture
) -> None:
    guard = GuardServer(server.uri, BASIC)
    run = tmp_path / "locked out"
    told = tracker(run, f"http://alice:wrong-{SECRET.replace(' ', '-')}@127.0.0.1:{guard.server_port}")
    told.metrics({"value": 1.0}, 1)
    told.close("FINISHED", 60)
    assert told.link is None
    assert "401" in caplog.text
    assert "horse" not in caplog.text
    right = Delivery(run, f"http://alice:{SECRET.replace(' ', '%20')}@127.0.0.1:{guard.server_port}")
    assert right.deliver() == 3
    guard.shutdown()


def test_mlflows_own_accounts(tmp_path: Path) -> None:
    pytest.importorskip("flask_wtf", reason="MLflow's accounts need Flask-WTF")
    settings = {
        "default_permission": "READ",
        "database_uri": f"sqlite:///{tmp_path}/auth.db",
        "admin_username": "alice",
        "admin_password": f"{SECRET}-123456",
        "authorization_function": "mlflow.server.auth:authenticate_request_basic_auth",
    }
    lines = [f"{name} = {value}" for name, value in settings.items()]
    (tmp_path / "auth.ini").write_text("\n".join(["[mlflow]", *lines]))
    environment = {"MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"), "MLFLOW_FLASK_SERVER_SECRET_KEY": "test"}
    server = tracking_server(tmp_path / "accounts", None, "--app-name", "basic-auth", **environment)
    server.start()
    try:
        address = server.uri.removeprefix("http://")
        told = tracker(tmp_path / "run", f"http://alice:{SECRET.replace(' ', '%20')}-123456@{address}")
        told.metrics({"value": 1.0}, 1)
        told.close("FINISHED", 60)
        assert told.link is not None
        (tmp_path / "stranger").mkdir()
        stranger = tracker(tmp_path / "stranger", server.uri)
        stranger.close("FINISHED", 60)
        assert stranger.link is None
    finally:
        server.kill()


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:////home/me/mlflow.db", "sqlite:////home/me/mlflow.db"),
        ("http://127.0.0.1:5000/base?x=1", "http://127.0.0.1:5000/base?x=1"),
        ("https://me:pass@example.org:443/mlflow", "https://example.org:443/mlflow"),
        ("https://token@example.org", "https://example.org"),
        ("postgresql://me:pass@db/mlflow", "postgresql://me@db/mlflow"),
        ("postgresql://me@db/mlflow?password=pass&sslmode=require", "postgresql://me@db/mlflow?sslmode=require"),
        ("databricks", "databricks"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
        ("postgresql://me:pa/ss@db/mlflow", "postgresql://me@db/mlflow"),
        ("postgresql://me:pa#ss@db/mlflow", "postgresql://me@db/mlflow"),
        ("mysql+pymysql://me:pa?ss@db/mlflow", "mysql+pymysql://me@db/mlflow"),
        ("postgresql://me:p@ss@db/mlflow?target=a@b", "postgresql://me@db/mlflow?target=a@b"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BUID%3Dme%3BPWD%3Dpass&x=1", "mssql+pyodbc:///?x=1"),
        ("https://me:pa/ss@example.org", "https://example.org"),
    ],
)
def test_addresses_without_secrets(uri: str, expected: str) -> None:
    assert without_secret(uri) == expected


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("https://me:sesame@example.org/mlflow", "sesame"),
        ("https://me:open%20sesame@example.org/mlflow", "open sesame"),
        ("https://sesame@example.org", "sesame"),
        ("postgresql://me@db/mlflow?password=sesame", "sesame"),
        ("postgresql://me:open/sesame@db/mlflow", "open/sesame"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3DX%3BUID%3Dme%3BPWD%3Dsesame", "sesame"),
    ],
)
def test_messages_without_secrets(uri: str, secret: str) -> None:
    message = redacted(f"request to {uri} failed: '{secret}' is wrong", uri)
    assert "sesame" not in message
    assert without_secret(uri) in message
    assert "is wrong" in message


@pytest.mark.parametrize(
    "uri",
    ["https://me:open/sesame@host", "https://me:1#sesame@host", "https://sesame?x@host", "https://", "http://a:b"],
)
def test_an_address_whose_host_cannot_be_told_is_refused(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(ConfigError, match=r"MLFLOW_TRACKING_URI: expected .* write %2F for /") as refused:
        default_uri()
    assert "sesame" not in str(refused.value)


@pytest.mark.usefixtures("server")
def test_a_full_disk_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = Journal(tmp_path)
    real = os.dup(journal._file)
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, journal._file)
    record = Metrics(step=1, time=1, values={"value": 1.0})
    with caplog.at_level(logging.WARNING):
        journal.append(record)
        journal.append(record)
    assert caplog.text.count("cannot be written") == 1
    os.dup2(real, journal._file)
    journal.append(record)
    journal.close()
    os.close(real)
    os.close(full)
    assert [found for found, _ in records_after(tmp_path, 0)] == [record]


def test_an_unknown_scheme_is_out_not_broken(tmp_path: Path) -> None:
    told = tracker(tmp_path / "scheme", "sqlite:///" + str(tmp_path / "a.db"))
    told.close("FINISHED", 60)
    with pytest.raises(Unavailable):
        Delivery(tmp_path / "scheme", "nonsense://somewhere").deliver()
