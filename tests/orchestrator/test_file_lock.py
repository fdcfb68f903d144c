"""One process writes a folder at a time, and a file system without locks is no other process."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from orchestrator.courier import locked
from orchestrator.run_directory import RunDirectory
from simulators.errors import RunDirectoryError, TrackingError


def _open_twice(path: Path) -> None:
    (path / "tracking").mkdir(parents=True)
    first, second = RunDirectory(path), RunDirectory(path)
    first.update(identity={})
    try:
        first.open({}, {})
        second.open({}, {})
        with locked(path), locked(path):
            pass
    finally:
        first.close()
        second.close()


def test_another_process_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="being written by another process"):
        _open_twice(tmp_path)
    with (
        pytest.raises(TrackingError, match="another process delivers"),
        locked(tmp_path),
        locked(tmp_path),
    ):
        pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_warning_says_so_and_all_goes_on(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(code, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    _open_twice(tmp_path)
    assert {record.message.partition(":")[0] for record in caplog.records} == {
        f"there are no file locks at {tmp_path / place} (No locks available)" for place in (".lock", "tracking/.lock")
    }
