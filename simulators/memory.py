"""How much memory simulations occupy, and how much the machine has left; by `/proc`, nothing where there is none."""

from __future__ import annotations

__all__ = ["oom_kills", "resident_bytes", "used_fraction"]

import contextlib
import os
import threading
import time
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SCAN_SECONDS = 0.2

_lock = threading.Lock()
_groups: dict[int, int] = {}
_scanned = 0.0


def resident_bytes(group: int) -> int:
    """Resident memory of a process group, as it was at most a fifth of a second ago."""
    global _groups, _scanned
    with _lock:
        # One look at all processes serves all simulations of this process.
        if time.monotonic() - _scanned > _SCAN_SECONDS:
            _groups, _scanned = _scan(), time.monotonic()
        return _groups.get(group, 0)


def used_fraction() -> float:
    """Share of the memory in use: of the container where it has a limit, else of the machine; 0 if unknown."""
    with contextlib.suppress(OSError, ValueError):
        limit = int((_CGROUP / "memory.max").read_text())
        inactive = next(
            int(line.split()[1])
            for line in (_CGROUP / "memory.stat").read_text().splitlines()
            if line.startswith("inactive_file ")
        )
        return (int((_CGROUP / "memory.current").read_text()) - inactive) / limit
    with contextlib.suppress(OSError, KeyError):
        values = dict(line.split(":") for line in (_PROC / "meminfo").read_text().splitlines())
        total, available = (int(values[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
        return 1.0 - available / total
    return 0.0


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started."""
    with contextlib.suppress(OSError):
        for line in (_PROC / "vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _scan() -> dict[int, int]:
    groups: dict[int, int] = {}
    for entry in _PROC.glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # The name, in parentheses, may hold anything; the numbers come after it.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            group, pages = int(fields[2]), int(fields[21])
            groups[group] = groups.get(group, 0) + pages * _PAGE
    return groups
