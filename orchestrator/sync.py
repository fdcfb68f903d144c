"""Delivery of what a campaign could not tell MLflow while it ran: `temperflow sync`."""

from __future__ import annotations

__all__ = ["deliver"]

import logging
import os
from pathlib import Path

from simulators.errors import TrackingError

from .courier import locked
from .delivery import Delivery, Unavailable
from .run_directory import RunDirectory
from .tracking_journal import journal_id
from .tracking_uri import default_uri, without_secret


def deliver(directory: Path) -> tuple[int, dict[str, str]]:
    """Delivers what is left; the number of records, and the address and id of the run.

    Raises:
        RunDirectoryError: No campaign there, or one that was not tracked.
        TrackingError: The server does not take the records; they are kept.
    """
    directory = directory.resolve()
    journal_id(directory / "tracking")
    uri = _uri(RunDirectory(directory).records())
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


def _uri(records: dict[str, object]) -> str:
    """Where the campaign was to be tracked; with its secrets if the environment has them."""
    config = records["config"]
    assert isinstance(config, dict)
    link = records.get("tracking")
    recorded = str(link if link is not None else config["tracking"]["uri"] or default_uri())
    here = os.environ.get("MLFLOW_TRACKING_URI", "")
    return here if here and without_secret(here) == recorded else recorded
