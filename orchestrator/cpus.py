"""How many CPUs there are for this process: fewer than the machine has, where others share it."""

from __future__ import annotations

__all__ = ["usable_cpus"]

import contextlib
import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """CPUs that this process may use, by its affinity (`taskset`, Slurm) and its container's limit; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(allowed, _limit())))


def _limit() -> float:
    """CPU seconds that the container may use a second; infinite without a limit."""
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max" in it
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((_CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf
