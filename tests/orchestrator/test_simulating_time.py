"""How long a campaign has been simulating, through a change of processes."""

from __future__ import annotations

from pathlib import Path

from orchestrator.run_directory import RunDirectory
from orchestrator.simulating_time import SimulatingTime


def test_simulating_goes_on_where_an_earlier_process_was(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.open({}, {})
    clock = [100.0]
    first = SimulatingTime(directory, lambda: clock[0])
    assert first.seconds == 0.0 and not first.due()
    first.start()
    clock[0] = 130.0
    assert first.due()
    first.write()
    assert not first.due()
    clock[0] = 135.0
    assert first.seconds == 35.0

    clock[0] = 5.0  # another machine's clock
    second = SimulatingTime(directory, lambda: clock[0])
    assert second.seconds == 30.0  # what was not written down is lost
    second.start()
    clock[0] = 12.0
    second.stop()
    clock[0] = 50.0
    assert second.seconds == 37.0
