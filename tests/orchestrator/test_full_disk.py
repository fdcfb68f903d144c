"""A whole campaign whose run directory is on a disk that fills: it waits for room, and ends with every simulation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaigns import write_campaign
from disks import fill, mounted
from waiting import PATIENCE, wait_until

from orchestrator import Campaign
from orchestrator.execution import Execution
from orchestrator.journal import ProposalJournal
from orchestrator.loop import Interrupted, SimulationLoop
from orchestrator.proposal import Proposals
from orchestrator.run_directory import RunDirectory
from orchestrator.spending_report import read_history
from orchestrator.store import SimulationStore
from orchestrator.trainer import Snapshot

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "64m") as folder:
        yield folder


def carried_out(work: Callable[..., Any], disk: Path, told: list[str], caplog: pytest.LogCaptureFixture) -> Any:
    """What a campaign's `work` returns if there is room again once any of this was told."""
    with ThreadPoolExecutor(1) as thread:
        running: Future[Any] = thread.submit(work, progress=False)
        try:
            wait_until(lambda: running.done() or any(text in caplog.text for text in told))
            assert not running.done(), running.exception()
        finally:
            (disk / "ballast").unlink(missing_ok=True)
        return running.result(PATIENCE)


def test_what_can_be_done_without_is_left_out_and_rows_wait(
    tmp_path: Path, disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, full = Execution._keep, False

    def keep_on_a_full_disk(self: Execution, snapshot: Snapshot) -> None:
        nonlocal full
        if full:
            keep(self, snapshot)
            return
        full = True
        fill(disk)
        keep(self, snapshot)
        self._write_time()
        # The last page of the file has room for a few.
        for _ in range(40):
            self.watch.write_metrics(force=True)

    monkeypatch.setattr("orchestrator.simulating_time._REMEMBER", 0.0)
    monkeypatch.setattr(Execution, "_keep", keep_on_a_full_disk)
    campaign = Campaign.from_file(write_campaign(tmp_path), directory=disk / "run")
    # Whichever comes first.
    result = carried_out(campaign.run, disk, ["wait to be stored", "proposals wait to be written to"], caplog)
    for what in ("metrics", "the trained model", "the time spent"):
        assert caplog.text.count(f"{what} cannot be written now") == 1
    rows = result.simulations()
    assert len(rows) == 300
    assert rows["id"].is_unique
    # All goes on, and nothing torn is left.
    assert read_history(RunDirectory(disk / "run"))["simulations"].iloc[-1] == 300
    assert campaign.run_directory.records()["simulating_seconds"] > 0
    assert campaign.run_directory.report.exists()


def test_proposals_that_cannot_be_written_down_wait(
    tmp_path: Path, disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is elsewhere, and takes all that there is."""
    record, recorded = ProposalJournal.record, 0

    def record_on_a_full_disk(self: ProposalJournal, proposals: Proposals, meanwhile: Callable[[], object]) -> None:
        nonlocal recorded
        recorded += 1
        if recorded == 3:
            fill(disk)
        record(self, proposals, meanwhile)

    monkeypatch.setattr(ProposalJournal, "record", record_on_a_full_disk)
    store = str(tmp_path / "store")
    config = write_campaign(tmp_path, store=store, observation=None, acquisition={"method": "prior"})
    campaign = Campaign.from_file(config, directory=disk / "run")
    assert carried_out(campaign.simulate, disk, ["proposals wait to be written to"], caplog) == 300
    ids = SimulationStore(store).ids()
    assert ids.tolist() == list(range(300))
    assert not len(np.setdiff1d(ProposalJournal(disk / "run" / "pending.arrows").read().id, ids))


def test_a_campaign_that_waits_for_room_can_be_stopped(
    tmp_path: Path, disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn = SimulationLoop._turn

    def stopped_once_it_waits(self: SimulationLoop, waiting: Proposals | None = None) -> None:
        if self.tally.spent and not (disk / "ballast").exists():
            fill(disk)
        if "proposals wait to be written to" in caplog.text:
            self.stopping.set()
        turn(self, waiting)

    monkeypatch.setattr(SimulationLoop, "_turn", stopped_once_it_waits)
    store = str(tmp_path / "store")
    config = write_campaign(tmp_path, store=store, observation=None, acquisition={"method": "prior"})
    campaign = Campaign.from_file(config, directory=disk / "run")
    with pytest.raises(Interrupted, match="stopped as asked"):
        campaign.simulate(progress=False)
    monkeypatch.undo()
    (disk / "ballast").unlink()
    assert campaign.simulate(progress=False) == 300
    assert SimulationStore(store).ids().tolist() == list(range(300))
