"""Delivery of what a campaign could not tell MLflow while it ran: `temperflow sync`."""

from __future__ import annotations

__all__ = ["deliver"]

import logging
from pathlib import Path

from simulators.errors import ConfigError, TrackingError

from .courier import locked
from .delivery import Delivery, Unavailable
from .run_directory import RunDirectory
from .tracking_journal import journal_id
from .tracking_trust import named_here, sync_command, trusted
from .tracking_uri import check_uri, default_uri, without_secret


def deliver(directory: Path, uri: str | None = None) -> tuple[int, dict[str, str]]:
    """Delivers what is left; the number of records, and the address and id of the run.

    Arguments:
        directory: Run directory.
        uri: Tracking server or store; by default the one that the campaign was to be tracked at.

    Raises:
        RunDirectoryError: No campaign there, or one that was not tracked.
        TrackingError: The server does not take the records; they are kept. Or the run directory, which may be somebody
            else's, names a server that the user has not named.
        ConfigError: An address that cannot be used.
    """
    directory = directory.resolve()
    journal_id(directory / "tracking")
    uri = _uri(directory, uri)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with locked(directory):
        delivery = Delivery(directory, uri)
        try:
            delivered = delivery.deliver()
            # Nobody else delivers, hence no campaign runs: what is open was killed.
            delivery.abandon()
        except Unavailable as error:
            raise TrackingError(
                f"MLflow at {delivery.server} does not take records ({error}); they are kept in {delivery.folder}. "
                "Start the server, or give it its credentials (MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, "
                "or MLFLOW_TRACKING_TOKEN), and run again"
            ) from error
    assert delivery.run_id is not None
    return delivered, {"uri": delivery.server, "run_id": delivery.run_id}


def _uri(directory: Path, asked: str | None) -> str:
    """Where to deliver; with its secrets if the environment has them."""
    if asked is not None:
        try:
            return named_here(check_uri(asked)) or asked
        except ValueError as error:
            raise ConfigError(f"--uri: {error}") from error
    records = RunDirectory(directory).records()
    recorded = records.get("tracking") or records["config"]["tracking"]["uri"]
    if recorded is None:
        return default_uri()
    if not trusted(str(recorded), directory):
        raise TrackingError(
            f"{directory} names {without_secret(str(recorded))} as its MLflow, and you have not: the records, and any "
            "credentials of yours, would go wherever the run directory says. If you trust that address, run "
            f"`{sync_command(directory, str(recorded))}`, or set MLFLOW_TRACKING_URI to it"
        )
    return named_here(str(recorded)) or str(recorded)
