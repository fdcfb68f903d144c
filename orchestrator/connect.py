"""Starting or joining Ray, on the CPUs that this process may use."""

from __future__ import annotations

__all__ = ["connected", "usable_cpus"]

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

import ray

from simulators.errors import ConfigError

_CGROUP = Path("/sys/fs/cgroup")


def usable_cpus() -> int:
    """CPUs that this process may use, by its affinity (`taskset`, Slurm) and its container's limit; at least 1."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min(allowed, _limit())))


@contextlib.contextmanager
def connected(address: str | None = None, num_cpus: int | None = None) -> Iterator[None]:
    """A Ray cluster for the length of a `with` block.

    Joins the cluster at `address`, or at `RAY_ADDRESS`, or the one this program has joined already; else starts
    one on this machine, with the CPUs that this process may use, and shuts it down in the end.

    Raises:
        ConfigError: No cluster answers at the address.
    """
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    # Neither usage reports nor anything else leaves the machine unasked.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A worker for every CPU would be started for nothing: a few hosts run all simulations.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    try:
        if address is None or address == "local":
            ray.init(
                address="local",
                num_cpus=num_cpus or usable_cpus(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        else:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"expected a Ray cluster at '{address}', but joining it failed: {reason}; start one with "
            "`ray start --head`, or leave out the address to use this machine"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _limit() -> float:
    """CPU seconds that the container may use a second; infinite without a limit."""
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max" in it
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((_CGROUP / "cpu" / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    return math.inf
