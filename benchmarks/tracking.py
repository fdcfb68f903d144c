"""What tracking and serving cost: each figure beside its target, and beside what plain MLflow costs for the same.

`python -m benchmarks.tracking` runs every case, one after the other; `--cases NAME,...` runs some. It starts its own
MLflow servers (sqlite) and kills them. They and the load generators share the machine's cores with what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from learners import TemperedPosterior, whiten
from learners.familiarity import Familiarity
from learners.guide import Guide, GuideOptions
from learners.network import NetworkOptions, PosteriorNetwork
from learners.scaling import DataScaling
from orchestrator.courier import last_pause, pause
from orchestrator.delivery import Delivery, Unavailable
from orchestrator.run_directory import RunDirectory
from orchestrator.tracking import Tracker
from orchestrator.tracking_journal import Journal, read_progress
from simulators.prior import Marginal, ProductPrior

NAME = "bench"
DIM_X = 42
#: Who asks the service at once.
CLIENTS = 8


def row(what: str, value: str, target: str = "") -> None:
    print(f"{what:<72} {value:>24}   {target}", flush=True)


@contextlib.contextmanager
def serving(arguments: list[str], folder: Path, health: str, **environment: str) -> Iterator[tuple[str, int]]:
    """A server of MLflow in a process group of its own; its address and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "mlflow", *arguments, "--port", str(port)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PATH": path, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        uri = f"http://127.0.0.1:{port}"
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(uri + health, timeout=5):
                break
            if process.poll() is not None:
                raise RuntimeError((folder / "server.log").read_text()[-2000:])
            time.sleep(0.1)
        yield uri, process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def tracking_server(folder: Path) -> contextlib.AbstractContextManager[tuple[str, int]]:
    store, artifacts = f"sqlite:///{folder}/mlflow.db", str(folder / "artifacts")
    arguments = ["server", "--backend-store-uri", store, "--artifacts-destination", artifacts, "--workers", "1"]
    return serving(arguments, folder, "/health")


def cpu_seconds(pid: int) -> float:
    """Of a process and all its children."""
    process = psutil.Process(pid)
    return sum(sum(p.cpu_times()[:2]) for p in [process, *process.children(recursive=True)])


def overhead(folder: Path) -> None:
    """100 metric points a second for a minute."""
    import mlflow

    with tracking_server(folder) as (uri, server):
        run = folder / "run"
        run.mkdir()
        told = Tracker(run, uri, "bench", "overhead")
        courier = told._courier._process.pid
        while told.link is None:
            time.sleep(0.1)
        time.sleep(3.0)
        row("courier: CPU seconds to start, once", f"{cpu_seconds(courier):.2f} s")
        before, before_server = cpu_seconds(courier), cpu_seconds(server)
        begin, inside, step = time.monotonic(), 0.0, 0
        while time.monotonic() - begin < 60.0:
            time.sleep(max(0.0, begin + 0.5 * step - time.monotonic()))
            values = {f"metric/{i}": float(i + step) for i in range(50)}
            inside += _timed(lambda values=values, step=step: told.metrics(values, step))  # type: ignore[misc]
            step += 1
        wall = time.monotonic() - begin
        row("campaign stands still: share of its wall time", f"{inside / wall:.4%}", "< 1 %")
        row(
            "courier: CPU, share of one core", f"{(cpu_seconds(courier) - before) / wall:.2%}", "< 1 % of the wall time"
        )
        row(
            "MLflow's server, sqlite, for the same: share of one core",
            f"{(cpu_seconds(server) - before_server) / wall:.2%}",
        )
        client = mlflow.MlflowClient(uri)
        run_id = client.create_run(client.create_experiment("peer")).info.run_id
        values = {f"metric/{i}": float(i) for i in range(100)}

        def singly() -> None:
            for name, value in values.items():
                client.log_metric(run_id, name, value, step=1)

        def together() -> None:
            with mlflow.start_run(run_id=run_id):
                mlflow.log_metrics(values, step=2)

        mlflow.set_tracking_uri(uri)
        ours = _timed(lambda: told.metrics(values, 1))
        told.close("FINISHED", 60)
        row("100 points: ours", f"{1000 * ours:.2f} ms")
        row("100 points: mlflow, one after the other", f"{1000 * _timed(singly):.0f} ms")
        row("100 points: mlflow, in one call", f"{1000 * _timed(together):.0f} ms")
    dead = folder / "dead"
    dead.mkdir()
    told = Tracker(dead, uri, "bench", "dead")
    inside = sum(_timed(lambda step=step: told.metrics(values, step)) for step in range(60))  # type: ignore[misc]
    row("server is out: campaign stands still, share of a minute", f"{inside / 60:.4%}", "< 1 %")
    row("server is out: seconds to end", f"{_timed(lambda: told.close('FINISHED', 60)):.1f} s")


def _timed(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def busy(folder: Path) -> None:
    """The same work on all cores with and without tracking, in turns."""
    cores = os.cpu_count() or 1
    with tracking_server(folder) as (uri, server):
        times: dict[bool, list[float]] = {True: [], False: []}
        own, mlflows = [], []
        for i, tracked in enumerate([False, True, True, False, False, True]):
            run = folder / f"run {i}"
            run.mkdir()
            told = Tracker(run, uri, "bench", "busy", enabled=tracked)
            while tracked and told.link is None:
                time.sleep(0.1)
            courier = told._courier._process.pid if tracked else None
            workers = [subprocess.Popen([sys.executable, "-c", _WORK]) for _ in range(cores)]
            spent, served = _campaign_seconds(courier), cpu_seconds(server)
            begin, step = time.monotonic(), 0
            while _running(workers, until=begin + 0.5 * step):
                told.metrics({f"metric/{j}": float(j + step) for j in range(50)}, step)
                step += 1
            times[tracked].append(time.monotonic() - begin)
            if tracked:
                own.append((_campaign_seconds(courier) - spent) / (cores * times[True][-1]))
                mlflows.append((cpu_seconds(server) - served) / (cores * times[True][-1]))
            told.close("FINISHED", 60)
        without, with_ = statistics.median(times[False]), statistics.median(times[True])
        row("all cores busy: wall time without tracking", f"{without:.2f} s")
        row("all cores busy: with 100 points/s, the server on the same cores", f"{with_ / without - 1:+.2%}", "< 1 %")
        row("all cores busy: share of their time for campaign's loop and courier", f"{max(own):.2%}", "< 1 %")
        row("all cores busy: share of their time for MLflow's server", f"{max(mlflows):.2%}")


def _running(workers: list[subprocess.Popen[bytes]], until: float) -> bool:
    """Waits for that moment, or for the end of all `workers` (not a tick longer: it is what is measured)."""
    for worker in workers:
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.wait(max(0.0, until - time.monotonic()))
    return any(worker.poll() is None for worker in workers)


def _campaign_seconds(courier: int | None) -> float:
    """CPU time of this process, which makes the points, and of what delivers them."""
    return time.process_time() + (0.0 if courier is None else cpu_seconds(courier))


_WORK = """
import os
os.environ["OPENBLAS_NUM_THREADS"] = "1"
import numpy as np
a = np.random.default_rng(0).normal(size=(300, 300))
for _ in range(20_000):
    b = a @ a
"""


def posterior() -> TemperedPosterior:
    """As large as that of the Hudson Bay demo: 8 parameters, 42 numbers in x. What it says does not matter here."""
    torch.manual_seed(0)
    names = tuple(f"theta_{i}" for i in range(8))
    prior = ProductPrior({n: Marginal("Normal", {"loc": 1.0, "scale": 0.5}, low=0.0) for n in names[:4]})
    prior = ProductPrior(
        {**prior.marginals, **{n: Marginal("LogNormal", {"loc": 0.0, "scale": 1.0}) for n in names[4:]}}
    )
    x = torch.randn(2000, DIM_X, dtype=torch.float64)
    guide = Guide(8, DIM_X, GuideOptions())
    network = PosteriorNetwork(8, DIM_X, (0.1, 2.0), NetworkOptions(), guide)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    scaling = DataScaling.fit(x)
    return TemperedPosterior(network, whiten(prior), scaling, Familiarity.fit(scaling(x)), names, x[0])


def register(folder: Path, uri: str) -> None:
    run = RunDirectory(folder / "campaign")
    run.path.mkdir()
    run.update(config={})
    told = Tracker(run.path, uri, "bench", "model", enabled=False)
    told._journal = Journal(run.path / "tracking")
    told._begin("campaign", "model", "campaign")
    told.model(posterior().save(run.posterior), NAME)
    Delivery(run.path, uri).deliver()


_COLD = """
import mlflow, pandas as pd, time
begin = time.perf_counter()
model = mlflow.pyfunc.load_model("models:/bench@champion")
x = pd.DataFrame([[0.1] * 42], columns=[f"x{i}" for i in range(42)])
model.predict(x, params={"beta": 0.5, "num_samples": 1000})
print(time.perf_counter() - begin)
"""
_COLD_OURS = """
import time
from learners import TemperedPosterior
begin = time.perf_counter()
TemperedPosterior.load("models:/bench@champion").sample((1000,), x=[0.1] * 42, beta=0.5)
print(time.perf_counter() - begin)
"""
_WARM = (
    _COLD
    + """
import time, torch, statistics
torch.set_num_threads(1)
def median(call):
    times = []
    for i in range(60):
        begin = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times)
print(median(lambda i: model.predict(x, params={"beta": 0.5, "num_samples": 1000, "seed": i})))
from learners import TemperedPosterior
posterior = TemperedPosterior.load("models:/bench@champion")
print(median(lambda i: posterior.sample((1000,), x=[0.1] * 42, beta=0.5, seed=i)))
"""
)


def load(folder: Path) -> None:
    """From nothing to the first 1,000 draws, and the next ones."""
    with tracking_server(folder) as (uri, _):
        register(folder, uri)
        environment = {**os.environ, "MLFLOW_TRACKING_URI": uri}
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)

        def python(code: str) -> str:
            done = subprocess.run(
                [sys.executable, "-c", code], cwd=folder, env=environment, check=True, capture_output=True
            )
            return done.stdout.decode()

        for what, code in ("mlflow.pyfunc", _COLD), ("TemperedPosterior.load", _COLD_OURS):
            python(code)
            seconds, loaded = [], []
            for _ in range(5):
                begin = time.perf_counter()
                loaded.append(float(python(code)))
                seconds.append(time.perf_counter() - begin)
            row(f"new process, {what}: first 1,000 draws", f"{statistics.median(seconds):.2f} s", "<= 3 s")
            row(f"of it {what}: from the call that loads on", f"{statistics.median(loaded):.2f} s", "<= 3 s")
        pyfunc, ours = python(_WARM).split()[-2:]
        row("next 1,000 draws, one thread: mlflow.pyfunc", f"{float(pyfunc):.1f} ms", "<= 20 ms")
        row("next 1,000 draws, one thread: TemperedPosterior.sample", f"{float(ours):.1f} ms", "<= 20 ms")


_EMPTY = '''
import mlflow, numpy as np, pandas as pd
from mlflow.pyfunc import PythonModel

class Empty(PythonModel):
    """Answers with the same 100 rows of 9 numbers: what is left is what MLflow costs."""
    def predict(self, context, model_input, params=None):
        return pd.DataFrame(np.random.default_rng(0).normal(size=(100, 9)), columns=[f"c{i}" for i in range(9)])

mlflow.models.set_model(Empty())
'''


def serve(folder: Path) -> None:
    """Requests for 100 draws each, on all cores, the load generator among them."""
    if shutil.which("wrk") is None:
        raise SystemExit("the case `serve` needs the load generator wrk: apt-get install wrk")
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    (folder / "empty.py").write_text(_EMPTY)
    inputs = Schema([ColSpec(DataType.double, f"x{i}") for i in range(DIM_X)])
    params = ParamSchema([ParamSpec(n, t, v) for n, t, v in _PARAMS(DataType)])
    mlflow.pyfunc.save_model(
        folder / "empty",
        python_model=str(folder / "empty.py"),
        signature=ModelSignature(inputs, None, params),
        pip_requirements=[],
    )
    with tracking_server(folder) as (uri, _):
        register(folder, uri)
        for what, model in ("ours", f"models:/{NAME}@champion"), ("a model that does nothing", str(folder / "empty")):
            arguments = ["models", "serve", "-m", model, "--env-manager", "local", "-w", str(os.cpu_count() or 1)]
            place = folder / what.split()[0]
            place.mkdir()
            quiet = {"OMP_NUM_THREADS": "1", "UVICORN_ACCESS_LOG": "false"}  # as docs/tracking.md says
            with serving(arguments, place, "/ping", MLFLOW_TRACKING_URI=uri, **quiet) as (address, server):
                time.sleep(3.0)  # both workers
                for form in "inputs", "dataframe_split":
                    _requests(place, address, form, 3.0)
                    before = cpu_seconds(server)
                    # Each with new connections, which the workers share out anew.
                    rates, p99s = zip(*(_requests(place, address, form, 5.0) for _ in range(5)), strict=True)
                    cpu = (cpu_seconds(server) - before) / (5.0 * sum(rates))
                    target = ("at least 200/s", "<= 100 ms") if what == "ours" and form == "inputs" else ("", "")
                    row(f"{what}, `{form}`: requests of 100 draws", _spread(rates, 1, "/s"), target[0])
                    row(f"{what}, `{form}`: p99", _spread(p99s, 1000, " ms"), target[1])
                    row(f"{what}, `{form}`: CPU of the service, one request", f"{1000 * cpu:.1f} ms")


def _spread(values: Sequence[float], factor: float, unit: str) -> str:
    middle, low, high = (factor * v for v in (statistics.median(values), min(values), max(values)))
    return f"{middle:.0f}{unit} ({low:.0f} to {high:.0f})"


def _PARAMS(kind: Any) -> list[tuple[str, Any, Any]]:  # noqa: N802
    return [("beta", kind.double, 1.0), ("num_samples", kind.long, 1000), ("seed", kind.long, 0)]


def _requests(folder: Path, address: str, form: str, seconds: float) -> tuple[float, float]:
    """Requests a second, and the 99th percentile of their latencies in seconds.

    By wrk, which costs next to nothing: what asks must not take the cores of what answers.
    """
    names = [f"x{j}" for j in range(DIM_X)]

    def body(i: int) -> str:
        x = np.random.default_rng(i).normal(size=DIM_X).tolist()
        rows: Any = {n: [v] for n, v in zip(names, x, strict=True)}
        if form == "dataframe_split":
            rows = {"columns": names, "data": [x]}
        return json.dumps({form: rows, "params": {"beta": 0.5, "num_samples": 100, "seed": i}})

    (folder / "bodies").write_text("\n".join(body(i) for i in range(500)))
    script = folder / "requests.lua"
    script.write_text(_WRK.replace("BODIES", str(folder / "bodies")))
    command = ["wrk", "-t", "1", "-c", str(CLIENTS), "-d", f"{seconds:g}s", "--timeout", "60s", "-s", str(script)]
    told = subprocess.run([*command, f"{address}/invocations"], check=True, capture_output=True, text=True).stdout
    number, rate, p99, errors = json.loads(told[told.rindex("[") :])
    assert not errors, told
    assert number > 0, told
    return rate, p99


#: Every request has another x and seed.
_WRK = """
local bodies = {}
for line in io.lines("BODIES") do bodies[#bodies + 1] = line end
local headers = {["Content-Type"] = "application/json"}
local i = 0
function request()
  i = i % #bodies + 1
  return wrk.format("POST", nil, headers, bodies[i])
end
function done(summary, latency, requests)
  local e = summary.errors
  local errors = e.connect + e.read + e.write + e.status + e.timeout
  local rate = summary.requests / summary.duration * 1e6
  print(string.format("[%d, %f, %f, %d]", summary.requests, rate, latency:percentile(99) / 1e6, errors))
end
"""


def many(folder: Path) -> None:
    """32 campaigns, each with 100 points a second, for half a minute, one server."""
    with tracking_server(folder) as (uri, server):
        campaigns = []
        for i in range(32):
            run = folder / f"campaign {i}"
            run.mkdir()
            told = Tracker(run, uri, "bench", run.name, enabled=False)
            told._journal = Journal(run / "tracking")
            told._begin("campaign", run.name, "campaign")
            campaigns.append((told, run, Delivery(run, uri)))
        done = threading.Event()
        lags: list[float] = []
        refused: list[float] = []

        def deliver(delivery: Delivery) -> None:
            failures = 0
            while True:
                last = done.is_set()
                if last and not failures:
                    time.sleep(last_pause(delivery.lasted))
                begin = time.monotonic()
                try:
                    delivery.deliver()
                    failures = 0
                except Unavailable:
                    last = False
                    failures += 1
                    refused.append(begin)
                lags.append(time.monotonic() - begin)
                if last:
                    return
                if failures:
                    time.sleep(pause(delivery.lasted, failures))
                else:
                    done.wait(pause(delivery.lasted, 0))

        with ThreadPoolExecutor(32) as pool:
            working = [pool.submit(deliver, delivery) for _, _, delivery in campaigns]
            before, begin = cpu_seconds(server), time.monotonic()
            for step in range(30):
                time.sleep(max(0.0, begin + step - time.monotonic()))
                for told, _, _ in campaigns:
                    told.metrics({f"metric/{j}": float(j + step) for j in range(100)}, step)
            written = time.monotonic() - begin
            done.set()
            for future in working:
                future.result()
        total = time.monotonic() - begin
        left = sum(
            (run / "tracking" / "journal.jsonl").stat().st_size - read_progress(run / "tracking", uri).offset
            for _, run, _ in campaigns
        )
        row("32 campaigns of 100 points/s: everything is there after", f"{total:.0f} s", f"written in {written:.0f} s")
        row("32 campaigns: bytes that are left", str(left), "0")
        row("32 campaigns: deliveries that the server did not take, and that were tried again", str(len(refused)))
        row("32 campaigns: longest delivery", f"{max(lags):.1f} s")
        row("32 campaigns: MLflow's server, share of one core", f"{(cpu_seconds(server) - before) / total:.0%}")


CASES = {"overhead": overhead, "busy": busy, "load": load, "serve": serve, "many": many}


def main() -> None:
    """Runs the cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default=",".join(CASES))
    for name in parser.parse_args().cases.split(","):
        print(f"\n{name}: {CASES[name].__doc__}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            CASES[name](Path(folder))
    print(f"\n{os.cpu_count()} cores; load over the last minutes {os.getloadavg()}")


if __name__ == "__main__":
    main()
