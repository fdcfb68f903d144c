"""Files of ours that say in which format they were written: a newer one is refused, not misread."""

from __future__ import annotations

__all__ = ["check_format", "read_record"]

import json
from pathlib import Path
from typing import Any

from .errors import TemperflowError


def check_format(what: object, found: int, newest: int, error: type[TemperflowError]) -> None:
    """Raises `error` if `what` is in a format that is not known yet."""
    if found > newest:
        raise error(
            f"{what} was written in format {found}, but this temperflow reads up to {newest}; upgrade temperflow"
        )


def read_record(path: Path, newest: int, error: type[TemperflowError], remedy: str) -> dict[str, Any]:
    """What a JSON file with an entry `format` holds.

    Raises:
        error: Damaged, with the remedy, or of a newer format.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        found = int(record["format"])
        if found < 1:
            raise ValueError(f"format {found}")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as damage:
        raise error(f"{path} is damaged ({damage}); {remedy}") from damage
    check_format(path, found, newest, error)
    return record
