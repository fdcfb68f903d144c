"""What was simulated survives: the driver killed or stopped, the trainer lost."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
import torch
from campaigns import QUICK, write_campaign
from waiting import PATIENCE, processes_with, wait_until

from orchestrator import Campaign
from orchestrator.campaign import _stop_on_signals
from orchestrator.config_learner import LearnerConfig
from orchestrator.journal import ProposalJournal
from orchestrator.learner_parts import LearnerParts
from orchestrator.loop import SimulationLoop
from orchestrator.proposal import Finished, ProposalKind, Proposals
from orchestrator.store import SimulationStore
from orchestrator.supervisor import TrainerSupervisor
from orchestrator.trainer import Snapshot, Trainer
from simulators.outcome import Outcome, Outcomes, Status


def start(config: Path, run: Path) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("temperflow")), "run", str(config), "--dir", str(run)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, cwd=config.parent
    )


def rows(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "simulations").set_index("id").sort_index()


def test_killed_half_way_and_continued(tmp_path: Path) -> None:
    config = write_campaign(tmp_path, simulator={"function": "model.py:slow"})
    run = tmp_path / "run"
    first = start(config, run)
    wait_until(lambda: first.poll() is not None or ((run / "simulations").exists() and len(list_rows(run)) >= 150))
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    before = rows(run)
    assert 150 <= len(before) < 300
    second = start(config, run)
    output, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0, output
    assert f"continuing with {len(before)} simulations" in output
    after = rows(run)
    assert len(after) == 300
    assert after.index.is_unique
    pd.testing.assert_frame_equal(after.loc[before.index], before)
    assert (run / "report.html").exists()
    # Nothing of either run is left behind, not even of the killed one.
    wait_until(lambda: not processes_with(str(tmp_path)))


@pytest.mark.parametrize("ignored", [False, True], ids=["ssh-ends", "nohup"])
def test_a_terminal_that_ends_is_a_wish_to_stop(ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with _stop_on_signals() as stopping:
            signal.raise_signal(signal.SIGHUP)
            assert stopping.is_set() != ignored
        assert signal.getsignal(signal.SIGHUP) == (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


def list_rows(run: Path) -> list[int]:
    return SimulationStore(run / "simulations").read([])["id"].to_pylist()


@pytest.mark.usefixtures("cluster")
def test_ids_go_on_after_the_highest_in_flight_wherever_it_was_written(tmp_path: Path) -> None:
    changes = {"acquisition": {"method": "prior"}, "calibration": {"share": 0.0}}
    config = write_campaign(tmp_path, budget={"simulations": 60}, **changes)
    directory = tmp_path / "run"
    assert Campaign.from_file(config, directory=directory).simulate(progress=False) == 60
    # As a kill leaves it: batches are shuffled, what was chosen one by one is written late.
    theta = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    parts = [Proposals.of_kind(i, t[None], ProposalKind.TEMPERED, 0) for i, t in zip((64, 71, 62), theta, strict=True)]
    journal = ProposalJournal(directory / "pending.arrows")
    journal.rotate(Proposals.concatenate(parts))
    journal.close()
    config = write_campaign(tmp_path, budget={"simulations": 90}, **changes)
    assert Campaign.from_file(config, directory=directory).simulate(progress=False) == 90
    after = rows(directory)
    assert len(after) == 90
    np.testing.assert_array_equal(np.stack(after.loc[[64, 71, 62], "theta"].to_list()), theta)


@pytest.mark.usefixtures("cluster")
def test_what_waits_stays_written_down_when_the_journal_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.journal._ROTATE_ROWS", 5)
    monkeypatch.setattr("orchestrator.pool._TASK_SECONDS", 0.0)  # one by one, so that most have to wait
    turn, lost, waited = SimulationLoop._turn, [], []

    def watched(loop: SimulationLoop, waiting: Proposals | None = None) -> None:
        turn(loop, waiting)
        if waiting is not None:
            waited.append(len(waiting))
            lost.extend(np.setdiff1d(waiting.id, loop.journal.read().id).tolist())

    monkeypatch.setattr(SimulationLoop, "_turn", watched)
    config = write_campaign(
        tmp_path,
        simulator={"function": "model.py:slow"},
        budget={"simulations": 200},
        acquisition={"method": "prior"},
        calibration={"share": 0.5},
    )
    assert Campaign.from_file(config, directory=tmp_path / "run").simulate(progress=False) == 150
    assert max(waited) > 10
    assert not lost


def test_asked_to_stop_it_keeps_everything_and_says_how_to_continue(tmp_path: Path) -> None:
    config = write_campaign(tmp_path, simulator={"function": "model.py:slow"})
    run = tmp_path / "run"
    process = start(config, run)
    wait_until(lambda: process.poll() is not None or ((run / "simulations").exists() and len(list_rows(run)) >= 20))
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert f"stopped as asked; {len(rows(run))} simulations are safe" in output
    assert "Traceback" not in output


def test_two_processes_cannot_write_one_run_directory(tmp_path: Path) -> None:
    config = write_campaign(tmp_path, simulator={"function": "model.py:slow"})
    run = tmp_path / "run"
    first = start(config, run)
    wait_until(lambda: first.poll() is not None or ((run / "simulations").exists() and len(list_rows(run)) >= 1))
    second = start(config, run)
    output, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 1
    assert "is being written by another process" in output
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=PATIENCE)


@pytest.mark.usefixtures("cluster")
def test_a_lost_trainer_is_started_again_from_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A large store is sent in pieces: here in seven, more than are on the way at once.
    monkeypatch.setattr("orchestrator.supervisor._FILL_NUMBERS", 60)
    store = SimulationStore(tmp_path)
    theta = np.random.default_rng(0).normal(size=(200, 2))
    store.append(_rows(theta))
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    config = LearnerConfig(**QUICK)
    actors = []

    def start_trainer() -> object:
        actors.append(
            Trainer.options(num_cpus=1).remote(prior, (0.1, 2.0), np.zeros(2), config, 0, ("a", "b"))  # type: ignore[attr-defined]
        )
        return actors[-1]

    supervisor = TrainerSupervisor(start_trainer, store)
    supervisor.update(150, 2)
    ray.kill(actors[0])
    result = None
    while result is None:
        result = supervisor.poll(1.0)
    assert len(actors) == 2
    assert isinstance(result, Snapshot)
    assert result.rows == 150
    supervisor.stop()


@pytest.mark.usefixtures("cluster")
def test_what_the_trainer_warns_of_is_told_where_the_user_looks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = SimulationStore(tmp_path)
    store.append(_rows(np.random.default_rng(0).normal(size=(100, 2))))
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    config = LearnerConfig(**{**QUICK, "members": [], "source": "cost", "distance": "model.py:distance"})

    def distance(x: torch.Tensor, x_o: torch.Tensor) -> torch.Tensor:
        logging.getLogger("learners.memory").warning("the GPU's memory ran out")
        return (x - x_o).square().sum(dim=-1)

    parts = LearnerParts(distance=distance)
    supervisor = TrainerSupervisor(
        lambda: Trainer.options(num_cpus=1).remote(  # type: ignore[attr-defined]
            prior, (0.1, 2.0), np.zeros(2), config, 0, ("a", "b"), None, parts
        ),
        store,
    )
    supervisor.update(100, 2)
    while supervisor.poll(1.0) is None:
        pass
    supervisor.stop()
    assert caplog.messages == ["the GPU's memory ran out"]


def _rows(theta: np.ndarray) -> Finished:
    proposals = Proposals.of_kind(0, theta, ProposalKind.PRIOR, 0, np.zeros(len(theta)))
    x = theta + 0.1 * np.random.default_rng(0).normal(size=theta.shape)
    outcomes = Outcomes.from_rows([Outcome(Status.OK, row, "", 1e9, 0.1) for row in x])
    return Finished(
        proposals, outcomes, np.ones(len(theta), dtype=np.int64), np.full(len(theta), "host:1", dtype=object)
    )
