"""Ending processes for good: a group, and those that left it."""

from __future__ import annotations

__all__ = ["MARK", "kill_group", "kill_marked"]

import contextlib
import os
import signal
import subprocess
from pathlib import Path

#: Environment variable by which the descendants of a simulator's process are found wherever they went.
MARK = "TEMPERFLOW_SIMULATION"


def kill_group(process: subprocess.Popen[bytes], grace: float) -> None:
    """SIGTERM to the group that `process` leads, SIGKILL after `grace` seconds; waits for the leader."""
    for stop, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, 10.0)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def kill_marked(mark: str) -> None:
    """SIGKILL to all processes whose environment holds `mark` (`NAME=value`); only where there is `/proc`.

    A process that made a session of its own, as MPI launchers do, is in no group that we know.
    """
    wanted = mark.encode()
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
