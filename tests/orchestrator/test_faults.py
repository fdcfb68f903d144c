"""Whole campaigns on a real cluster under faults: each simulation once, the budget met, no process left."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import ray
from campaigns import NORMAL, write_campaign
from clusters import ray_cluster
from disks import mounted
from ray._private.state import actors
from ray.cluster_utils import Cluster
from typer.testing import CliRunner
from waiting import PATIENCE, processes_with, wait_until

from orchestrator import Campaign
from orchestrator.cli import app
from orchestrator.journal import ProposalJournal
from orchestrator.pool import SimulationPool
from orchestrator.store import SimulationStore

SIMULATOR = """
import ctypes, os, subprocess, sys, time
import numpy as np

def hang_in_c(theta):
    ctypes.PyDLL(None).sleep(1000)

def fork_and_hang(theta):
    subprocess.Popen(["sleep", "1000"], start_new_session=True)
    time.sleep(1000)

def eat(theta):
    held = []
    while True:
        held.append(np.ones(1 << 22))

FAULTS = [
    lambda theta: 1 / 0,
    lambda theta: np.nan,
    lambda theta: [np.inf, 1.0],
    lambda theta: np.zeros(3),
    lambda theta: None,
    lambda theta: object(),
    lambda theta: ctypes.string_at(0),
    lambda theta: os._exit(3),
    hang_in_c,
    lambda theta: time.sleep(1000),
    fork_and_hang,
    eat,
    lambda theta: (os.write(1, b"x" * 100_000_000), theta)[1],
]

def faulty(theta, seed):
    number = int(theta[0])
    return FAULTS[number](theta) if number < len(FAULTS) else theta

def brief(theta, seed):
    time.sleep(0.02)
    return theta

def uneven(theta, seed):
    noise = np.random.default_rng(seed).normal()
    time.sleep(1.0 if noise > 0 else 0.0)
    return np.array([theta[0], noise])
"""

#: What each fault must say, in the order of the simulator's list.
REASONS = [
    ("raised", "ZeroDivisionError"),
    ("not_finite", "1 of 1 values are NaN or infinite"),
    ("not_finite", "1 of 2 values are NaN or infinite"),
    ("wrong_shape", "returned 3 numbers, but earlier simulations returned 1"),
    ("wrong_type", "returned None"),
    ("wrong_type", "got object"),
    ("crashed", "killed by SIGSEGV"),
    ("crashed", "exit code 3"),
    ("timeout", "timeout of 5 s"),
    ("timeout", "timeout of 5 s"),
    ("timeout", "timeout of 5 s"),
    ("out_of_memory", "more than its memory of 400 MB"),
    ("ok", ""),
]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Cluster]:
    """A head and a second node."""
    with ray_cluster({"num_cpus": 2}, {"num_cpus": 2}) as cluster:
        yield cluster


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder with the simulator; no process that a simulation started may outlive the test."""
    (tmp_path / "faults.py").write_text(SIMULATOR)
    yield tmp_path
    wait_until(lambda: not processes_with("simulators.runner"))


def configure(folder: Path, function: str, budget: dict[str, float], **changes: Any) -> Path:
    simulator = {"function": f"faults.py:{function}", **changes.pop("simulator", {})}
    changes = {"acquisition": {"method": "prior"}, "parameters": {"a": NORMAL}, "observation": None, **changes}
    return write_campaign(folder, simulator=simulator, budget=budget, **changes)


def rows(run: Path) -> pd.DataFrame:
    return SimulationStore(run / "simulations").read().to_pandas().set_index("id")


def unfinished(run: Path) -> np.ndarray:
    """Ids that were proposed, but are not in the store."""
    return np.setdiff1d(ProposalJournal(run / "pending.arrows").read().id, rows(run).index)


@pytest.mark.usefixtures("nodes")
def test_each_fault_is_a_row_whose_reason_can_be_read(folder: Path) -> None:
    spread = {"distribution": "Uniform", "low": 0, "high": 2 * len(REASONS)}
    config = configure(
        folder,
        "faulty",
        {"simulations": 120},
        parameters={"a": spread},
        acquisition={"method": "sobol"},
        simulator={"timeout": 5.0, "resources": {"memory": 400_000_000}},
    )
    assert Campaign.from_file(config, directory=folder / "run").simulate(progress=False) == 120
    table = rows(folder / "run")
    assert table.index.tolist() == list(range(120))
    text = CliRunner().invoke(app, ["status", str(folder / "run")], env={"COLUMNS": "300"}).output
    for number, (status, reason) in enumerate(REASONS):
        same = table[table["theta"].str[0].astype(int) == number]
        assert len(same) > 0
        assert set(same["status"]) == {status}
        assert same["reason"].str.contains(reason, regex=False).all()
        assert reason.split(",")[0] in text
    assert set(table[table["theta"].str[0] >= len(REASONS)]["status"]) == {"ok"}
    assert not processes_with("sleep\x001000")


def test_the_driver_killed_fifty_times_at_random_moments(nodes: Cluster, folder: Path) -> None:
    config, run = configure(folder, "brief", {"simulations": 5000}), folder / "run"
    driver = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("killed_driver.py")), str(config), str(run), nodes.address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert driver.stdin is not None and driver.stdout is not None
    rng = np.random.default_rng(5)
    known = pd.DataFrame()
    for life in range(51):
        print("go", file=driver.stdin, flush=True)
        pid = int(driver.stdout.readline())
        if life < 50:
            wanted = len(known) + int(rng.integers(0, 50))
            moment = time.monotonic() + rng.uniform(0.0, 4.0)
            wait_until(lambda w=wanted, m=moment: _stored(run) > w or time.monotonic() > m)
            os.kill(pid, signal.SIGKILL)
        status = int(driver.stdout.readline())
        if run.exists():
            now = rows(run)
            assert now.index.is_unique
            # What was there is there, unchanged.
            pd.testing.assert_frame_equal(now.loc[known.index], known) if len(known) else None
            known = now
    driver.stdin.close()
    assert status == 0
    assert driver.wait() == 0
    assert known.index.tolist() == list(range(5000))
    assert set(known["status"]) == {"ok"}
    assert np.allclose(known["x"].str[0], known["theta"].str[0])
    assert not len(unfinished(run))


def _stored(run: Path) -> int:
    return len(SimulationStore(run / "simulations").ids()) if (run / "simulations").exists() else 0


def trainers() -> list[int]:
    """Process ids of the trainers of the cluster."""
    alive = [a for a in actors().values() if a["State"] == "ALIVE" and a["ActorClassName"] == "Trainer"]
    return [actor["Pid"] for actor in alive]


@pytest.mark.usefixtures("nodes")
def test_a_trainer_that_is_killed_does_not_stop_the_campaign(folder: Path) -> None:
    config = write_campaign(folder, simulator={"function": "model.py:slow"})
    process, log = start(config, folder, "run")
    wait_until(lambda: process.poll() is not None or _stored(folder / "run") >= 100)
    wait_until(lambda: process.poll() is not None or len(trainers()) == 1)
    os.kill(trainers()[0], signal.SIGKILL)
    assert process.wait(PATIENCE) == 0, log.read_text()
    table = rows(folder / "run")
    assert len(table) == 300
    assert table.index.is_unique


@pytest.mark.usefixtures("nodes")
def test_started_before_the_deadline_is_in_the_store_however_slow(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    withdraw, withdrawn = SimulationPool.withdraw, []

    def noting(pool: SimulationPool, since: int) -> int:
        withdrawn.append(withdraw(pool, since))
        return withdrawn[-1]

    monkeypatch.setattr(SimulationPool, "withdraw", noting)
    config = configure(folder, "uneven", {"hours": 3 / 3600}, simulator={"resources": {"cpus": 0.25}})
    number = Campaign.from_file(config, directory=folder / "run").simulate(progress=False)
    table = rows(folder / "run")
    assert table.index.is_unique
    assert len(table) == number
    # What had not been handed to a worker is withdrawn; nothing of it is left to be simulated later.
    assert any(withdrawn)
    assert not len(unfinished(folder / "run"))
    # The noise decides how long it takes; had only what ended in time been kept, more would be negative.
    slow = (table["x"].str[1] > 0).sum()
    assert abs(slow - number / 2) < 4 * np.sqrt(number) / 2


@pytest.mark.usefixtures("nodes")
def test_what_was_interrupted_is_simulated_again_unchanged(folder: Path) -> None:
    config = configure(folder, "uneven", {"simulations": 60}, simulator={"resources": {"cpus": 0.5}, "stop_wait": 0.0})
    process, log = start(config, folder, "simulate")
    wait_until(lambda: process.poll() is not None or _stored(folder / "run") >= 5)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) != 0
    assert "stopped as asked" in log.read_text()
    assert "Traceback" not in log.read_text()
    left = unfinished(folder / "run")
    assert len(left)
    journal = ProposalJournal(folder / "run" / "pending.arrows").read()
    pending = journal.take(np.isin(journal.id, left))
    assert Campaign.from_file(config, directory=folder / "run").simulate(progress=False) == 60
    table = rows(folder / "run")
    assert table.index.tolist() == list(range(60))
    again = table.loc[pending.id]
    assert np.array_equal(np.stack(again["theta"].to_numpy()), pending.theta)
    assert again["seed"].tolist() == pending.seed.tolist()


@pytest.mark.usefixtures("nodes")
@pytest.mark.parametrize("hours", [-1, 2])
def test_a_clock_that_jumps_changes_nothing(folder: Path, hours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = time.time, [0]

    def jumping() -> float:
        calls[0] += 1
        return real() + (3600 * hours if calls[0] > 3 else 0)

    config = configure(folder, "brief", {"simulations": 300, "hours": 1})
    campaign = Campaign.from_file(config, directory=folder / "run")
    monkeypatch.setattr(time, "time", jumping)
    assert campaign.simulate(progress=False) == 300
    assert calls[0] > 3
    assert rows(folder / "run").index.tolist() == list(range(300))
    assert 0 < campaign.run_directory.records()["simulating_seconds"] < PATIENCE


@pytest.mark.usefixtures("nodes")
def test_a_full_disk_delays_rows_and_loses_none(folder: Path) -> None:
    with mounted(folder / "disk", "512k") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(500_000))
        config = configure(folder, "brief", {"simulations": 200}, store=str(disk / "simulations"))
        process, log = start(config, folder, "simulate")
        wait_until(lambda: process.poll() is not None or "wait to be stored" in log.read_text())
        assert process.poll() is None
        ballast.unlink()
        assert process.wait(PATIENCE) == 0, log.read_text()
        table = SimulationStore(disk / "simulations").read(["status"])
        assert table["id"].to_pylist() == list(range(200))


@pytest.mark.usefixtures("nodes")
def test_a_program_that_writes_garbage_is_a_failure_with_its_reason(folder: Path) -> None:
    (folder / "program.sh").write_text(
        '#!/bin/sh\ncase $1 in -*) echo "no numbers" > "$2";; *) echo "$1" > "$2";; esac\n'
    )
    (folder / "program.sh").chmod(0o755)
    simulator = {"function": None, "command": ["./program.sh", "{a}", "{output}"], "output": "csv"}
    config = configure(folder, "none", {"simulations": 30}, simulator=simulator)
    assert Campaign.from_file(config, directory=folder / "run").simulate(progress=False) == 30
    table = rows(folder / "run")
    negative = table["theta"].str[0] < 0
    assert set(table[negative]["status"]) == {"wrong_type"}
    assert set(table[~negative]["status"]) == {"ok"}
    text = CliRunner().invoke(app, ["status", str(folder / "run")], env={"COLUMNS": "300"}).output
    assert "wrong_type" in text
    assert "no numbers" in text


@pytest.mark.usefixtures("nodes")
def test_a_second_interrupt_ends_at_once(folder: Path) -> None:
    config = configure(folder, "uneven", {"simulations": 500}, simulator={"stop_wait": 20.0})
    process, log = start(config, folder, "simulate")
    wait_until(lambda: process.poll() is not None or _stored(folder / "run") >= 3)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE) != 0
    assert "Traceback" not in log.read_text()
    stored = rows(folder / "run")
    assert stored.index.is_unique
    assert len(stored) < 500


def test_all_processes_asked_to_end_at_once(folder: Path) -> None:
    # As systemd and batch systems do: Ray is gone before the campaign can take leave of it.
    config = configure(folder, "brief", {"simulations": 5000})
    process, log = start(config, folder, "simulate", own_cluster=True)
    wait_until(lambda: process.poll() is not None or _stored(folder / "run") >= 20)
    children = psutil.Process(process.pid).children(recursive=True)
    [gcs] = [child for child in children if child.name() == "gcs_server"]
    gcs.kill()
    wait_until(lambda: not gcs.is_running() or gcs.status() == psutil.STATUS_ZOMBIE)
    for asked in [process, *children]:
        with contextlib.suppress(psutil.NoSuchProcess):
            asked.terminate()
    assert process.wait(PATIENCE) == 1
    assert "stopped as asked" in log.read_text()
    table = rows(folder / "run")
    assert table.index.is_unique
    assert f"{len(table)} simulations are safe" in log.read_text()


def start(config: Path, folder: Path, verb: str, own_cluster: bool = False) -> tuple[subprocess.Popen[bytes], Path]:
    """`temperflow run` or `simulate` on the cluster, or on one of its own, and the file with all that it says."""
    command = [str(Path(sys.executable).with_name("temperflow")), verb, str(config), "--dir", str(folder / "run")]
    environment = {**os.environ, "RAY_ADDRESS": "local" if own_cluster else ray.get_runtime_context().gcs_address}
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, env=environment)
    return process, log
