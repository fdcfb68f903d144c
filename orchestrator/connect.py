"""Starting or joining Ray."""

from __future__ import annotations

__all__ = ["connected"]

import atexit
import contextlib
import logging
import os
from collections.abc import Iterator

import ray

from simulators.errors import ConfigError

from .cpus import usable_cpus
from .ray_calls import NoAnswerError, within

logger = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 10.0


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
        try:
            within(_SHUTDOWN_SECONDS, ray.shutdown)
        except NoAnswerError:
            # Ray would try once more when Python ends, and take as long.
            atexit.unregister(ray.shutdown)
            logger.warning("Ray did not shut down within %g s: look for processes that it has left", _SHUTDOWN_SECONDS)
