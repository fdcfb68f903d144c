"""The store: every simulation as a row of an append-only Parquet dataset. It is the truth of a campaign.

A file appears whole or not at all (written aside, fsynced, renamed), so a killed campaign leaves no half row.
"""

from __future__ import annotations

__all__ = ["SCHEMA", "SimulationStore"]

import hashlib
import os
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from simulators.errors import RunDirectoryError
from simulators.outcome import Status

from .proposal import Finished

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("theta", pa.list_(pa.float64())),
        ("x", pa.list_(pa.float64())),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("attempts", pa.int32()),
        ("worker", pa.string()),
        ("started", pa.timestamp("us", tz="UTC")),
        ("seconds", pa.float64()),
        ("proposal", pa.string()),
        ("proposal_log_density", pa.float64()),
        ("beta", pa.float64()),
        ("seed", pa.int64()),
    ]
)


class SimulationStore:
    """Rows of `directory/*.parquet`.

    Arguments:
        directory: Created if missing.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def append(self, rows: Sequence[Finished]) -> None:
        """Writes finished simulations as one new file; on return they are on disk."""
        if not rows:
            return
        name = f"{rows[0].proposal.id:012d}-{uuid.uuid4().hex[:8]}.parquet"
        temporary = self.directory / f".{name}.tmp"
        with temporary.open("wb") as file:
            pq.write_table(_table(rows), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.directory / name)
        _sync_folder(self.directory)

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows in the order of their ids, each id once.

        Raises:
            RunDirectoryError: A file of the store cannot be read.
        """
        wanted = None if columns is None else list(dict.fromkeys(["id", *columns]))
        try:
            table = self._dataset().to_table(columns=wanted)
        except (pa.ArrowInvalid, OSError) as error:
            raise RunDirectoryError(
                f"the store {self.directory} cannot be read: {error}; move the damaged file aside to continue"
            ) from error
        ids, first = np.unique(table["id"].to_numpy(), return_index=True)
        return table.take(pa.array(first)) if len(ids) else table

    def __len__(self) -> int:
        return int(self._dataset().count_rows())

    def digest(self) -> str:
        """SHA-256 of the ids, parameters and results of all rows: the identity of what was simulated."""
        table = self.read(["theta", "x", "status"])
        digest = hashlib.sha256()
        for column in ("id", "theta", "x", "status"):
            for value in table[column].to_pylist():
                digest.update(repr(value).encode())
        return digest.hexdigest()

    def _dataset(self) -> ds.Dataset:
        return ds.dataset(self.directory, schema=SCHEMA, format="parquet")


def split_columns(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """`theta` `(n, d)` and `x` `(n, k)` of a table; rows without a result are NaN."""
    theta = np.array(table["theta"].to_pylist(), dtype=np.float64)
    values = table["x"].to_pylist()
    width = max((len(v) for v in values if v is not None), default=0)
    x = np.full((len(values), width), np.nan)
    for i, value in enumerate(values):
        if value is not None and len(value) == width:
            x[i] = value
    return theta, x


def _table(rows: Sequence[Finished]) -> pa.Table:
    outcomes = [row.outcome for row in rows]
    proposals = [row.proposal for row in rows]
    ok = [o.x if o.status is Status.OK else None for o in outcomes]
    return pa.table(
        {
            "id": [p.id for p in proposals],
            "theta": [p.theta for p in proposals],
            "x": ok,
            "status": [str(o.status) for o in outcomes],
            "reason": [o.reason for o in outcomes],
            "attempts": [row.attempts for row in rows],
            "worker": [row.worker for row in rows],
            "started": [datetime.fromtimestamp(o.started, UTC) for o in outcomes],
            "seconds": [o.seconds for o in outcomes],
            "proposal": [str(p.kind) for p in proposals],
            "proposal_log_density": [p.log_density for p in proposals],
            "beta": [p.beta for p in proposals],
            "seed": [p.seed for p in proposals],
        },
        schema=SCHEMA,
    )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
