"""The journal: proposals on disk before they are simulated, so that nothing depends on which of them end first.

Simulations in flight when a campaign is killed are the slow ones. Drawing new ones in their place would favour the
fast; so they are simulated again, with the same id, theta and seed.
"""

from __future__ import annotations

__all__ = ["ProposalJournal"]

import contextlib
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from .proposal import KINDS, Integers, ProposalKind, Proposals

#: Rows after which the journal is written anew without what has finished.
_ROTATE_ROWS = 200_000


class ProposalJournal:
    """Proposals in an Arrow stream that only grows, written anew now and then. Survives a kill at any moment.

    Arguments:
        path: The file; what an earlier process left there is kept until `rotate`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._writer: Any = None
        self._rows = 0

    def read(self) -> Proposals:
        """All proposals in the journal; a batch that was not written to its end is left out."""
        parts: list[Proposals] = []
        with contextlib.suppress(FileNotFoundError, pa.ArrowInvalid, OSError), self.path.open("rb") as file:
            for batch in pa.ipc.open_stream(file):
                parts.append(_proposals(batch))
        return Proposals.concatenate(parts)

    def rotate(self, unfinished: Proposals) -> None:
        """Begins anew with what has not finished yet; the old contents stay until this is on disk."""
        self.close()
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        self._file = temporary.open("wb")
        self._rows = 0
        self._write(unfinished)
        os.fsync(self._file.fileno())
        os.replace(temporary, self.path)

    def record(self, proposals: Proposals) -> None:
        """Writes proposals down; from now on they survive this process."""
        assert self._file is not None, "rotate comes first"
        self._write(proposals)

    @property
    def full(self) -> bool:
        """Whether it is time to `rotate`."""
        return self._rows > _ROTATE_ROWS

    def close(self) -> None:
        """Closes the file; what was recorded stays."""
        if self._file is not None:
            self._file.close()
        self._file = self._writer = None

    def _write(self, proposals: Proposals) -> None:
        assert self._file is not None
        if not len(proposals):
            return
        batch = _batch(proposals)
        if self._writer is None:
            self._writer = pa.ipc.new_stream(self._file, batch.schema)
        self._writer.write_batch(batch)
        self._file.flush()
        self._rows += len(proposals)


def _batch(proposals: Proposals) -> pa.RecordBatch:
    dim = proposals.theta.shape[1]
    names = pa.DictionaryArray.from_arrays(pa.array(proposals.kind.astype(np.int8)), pa.array([str(k) for k in KINDS]))
    columns = {
        "id": pa.array(proposals.id),
        "theta": pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(proposals.theta).ravel()), dim),
        "beta": pa.array(proposals.beta),
        "proposal": names.cast(pa.string()),
        "log_density": pa.array(proposals.log_density),
        "seed": pa.array(proposals.seed),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


def _proposals(batch: pa.RecordBatch) -> Proposals:
    n = batch.num_rows
    kinds = np.array([ProposalKind(kind).code for kind in batch["proposal"].to_pylist()], dtype=np.uint8)
    theta = batch["theta"].flatten().to_numpy(zero_copy_only=False).reshape(n, -1)
    ids: Integers = batch["id"].to_numpy()
    return Proposals(
        ids, theta, batch["beta"].to_numpy(), kinds, batch["log_density"].to_numpy(), batch["seed"].to_numpy()
    )
