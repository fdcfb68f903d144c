"""Records for MLflow on disk: written by the campaign, read by whoever delivers them.

`tracking/journal.jsonl` only ever grows, a line a record; a line is written with one call, so that a killed process
leaves at most its last line torn. `tracking/delivered.json` says, for each server, up to which byte it has the records,
and which of its runs are ours.
"""

from __future__ import annotations

__all__ = ["Journal", "Progress", "journal_id", "read_progress", "records_after", "write_progress"]

import errno
import json
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from simulators.errors import RunDirectoryError
from simulators.formats import check_format

from .tracking_records import Record, parse

logger = logging.getLogger(__name__)

_JOURNAL, _DELIVERED = "journal.jsonl", "delivered.json"
_FORMAT = 1


class Progress(BaseModel):
    """How far a server has the records."""

    model_config = ConfigDict(extra="forbid")

    offset: int = 0
    """Bytes of the journal that it has."""
    runs: dict[str, str] = {}
    """Key to MLflow's id of a run."""
    open: list[str] = []
    """Keys of the runs that have begun and not ended."""


class Journal:
    """The writing end.

    Arguments:
        folder: `tracking` in the run directory; created if missing.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._warned = self._torn = False
        path = folder / _JOURNAL
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._file).st_size
        if size == 0:
            self._write(json.dumps({"format": _FORMAT, "id": uuid.uuid4().hex}))
        elif os.pread(self._file, 1, size - 1) != b"\n":
            # The last line of a process that was killed.
            self._torn = True

    def append(self, record: Record) -> None:
        """Writes a record; it survives the end of this process. A disk that is full costs the record, no more."""
        try:
            self._write(record.model_dump_json())
        except OSError as error:
            if not self._warned:
                self._warned = True
                logger.warning("records for MLflow cannot be written: %s", error)

    def close(self) -> None:
        """Ends the writing."""
        os.close(self._file)

    def _write(self, text: str) -> None:
        data = (b"\n" if self._torn else b"") + text.encode() + b"\n"
        self._torn = True
        if os.write(self._file, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._torn = False


def records_after(folder: Path, offset: int) -> Iterator[tuple[Record, int]]:
    """Complete records behind a byte offset, each with the offset behind it. A damaged line is left out."""
    path = folder / _JOURNAL
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            if offset == len(line):
                continue  # the header
            try:
                yield parse(line), offset
            except ValueError:
                logger.warning("a damaged record for MLflow is left out (%s, byte %d)", path, offset - len(line))


def journal_id(folder: Path) -> str:
    """What tells this campaign's runs from all others on a server.

    Raises:
        RunDirectoryError: No journal, a damaged one, or one of a newer version.
    """
    path = folder / _JOURNAL
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline())
        identity, version = str(header["id"]), int(header["format"])
    except FileNotFoundError as error:
        raise RunDirectoryError(f"nothing was tracked in {folder.parent}: {path} does not exist") from error
    except (ValueError, KeyError, TypeError) as error:
        raise RunDirectoryError(f"the beginning of {path} is damaged; move it aside to track anew") from error
    check_format(path, version, _FORMAT, RunDirectoryError)
    return identity


def read_progress(folder: Path, server: str) -> Progress:
    """How far `server` (an address without secrets) has the records."""
    try:
        known = json.loads((folder / _DELIVERED).read_text())["servers"]
        return Progress.model_validate(known.get(server, {}))
    except (OSError, ValueError, KeyError, AttributeError):
        # Everything is delivered anew, which changes nothing on a server that has it.
        return Progress()


def write_progress(folder: Path, server: str, progress: Progress) -> None:
    """Remembers it, whole or not at all."""
    path = folder / _DELIVERED
    known: dict[str, Any] = {}
    if path.exists():
        try:
            known = json.loads(path.read_text())["servers"]
        except (ValueError, KeyError):
            known = {}
    known[server] = progress.model_dump()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps({"format": _FORMAT, "servers": known}))
    os.replace(temporary, path)
