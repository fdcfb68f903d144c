"""Ending processes for good: a group, and those that left it."""

from __future__ import annotations

__all__ = ["MARK", "end_fork", "kill_group", "kill_marked", "signal_name"]

import contextlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

#: Environment variable by which the descendants of a simulator's process are found wherever they went.
MARK = "TEMPERFLOW_SIMULATION"


def signal_name(number: int) -> str:
    """The name of a signal, such as `SIGSEGV`; most real-time signals have none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def end_fork(owner: int) -> None:
    """Ends this process, as the exception under way says, if it is a fork of the process `owner` and not that itself.

    A user's code that forks may come back twice. The fork must not go on with what is ours: our pipes are its too.
    """
    if os.getpid() == owner:
        return
    error, code = sys.exc_info()[1], 0
    with contextlib.suppress(BaseException):
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            code = 1
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code & 0xFF)


def kill_group(process: subprocess.Popen[bytes], grace: float) -> None:
    """SIGTERM to the group that `process` leads, SIGKILL after `grace` seconds; waits for the leader."""
    for stop, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def kill_marked(mark: str, patience: float = 10.0) -> None:
    """SIGKILL to all processes whose environment holds `mark` (`NAME=value`); only where there is `/proc`.

    A process that made a session of its own, as MPI launchers do, is in no group that we know. Returns when none is
    left, or after `patience` seconds: a killed process ends a moment later, and one that was starting another may
    have been overtaken by it.
    """
    deadline = time.monotonic() + patience
    found: set[int] = set()
    while (found := {*_marked(mark.encode()), *filter(_lives, found)}) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)


def _marked(mark: bytes) -> Iterator[int]:
    """Processes with `mark` in their environment, which one that is ending has no more."""
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (entry / "environ").read_bytes().split(b"\0"):
                yield int(entry.name)


def _lives(pid: int) -> bool:
    """Whether `pid` has not ended; a process that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
