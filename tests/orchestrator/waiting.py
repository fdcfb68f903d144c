"""Waiting for events, and looking at the machine's processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

#: Seconds after which an event that has not come will not come.
PATIENCE = 300.0


def wait_until(condition: Callable[[], bool]) -> None:
    """Returns as soon as `condition` holds; fails after five minutes."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "the event never came"
        time.sleep(0.05)


def processes_with(text: str) -> list[int]:
    """Living processes whose command line mentions `text`, without those of tests that run beside this one."""
    mine = f"PYTEST_XDIST_WORKER={os.environ.get('PYTEST_XDIST_WORKER', '')}"
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                inherited = (entry / "environ").read_bytes().decode(errors="replace")
                others = "PYTEST_XDIST_WORKER=" in inherited and mine not in inherited
                if text in (entry / "cmdline").read_text() and not others:
                    found.append(int(entry.name))
            except OSError:
                continue
    return found
