"""The journal: proposals on disk before they are simulated, so that nothing depends on which of them end first.

Simulations in flight when a campaign is killed are the slow ones. Drawing new ones in their place would favour the
fast; so they are simulated again, with the same id, theta and seed.
"""

from __future__ import annotations

__all__ = ["ProposalJournal", "append_line", "append_whole"]

import contextlib
import logging
import os
from collections.abc import Callable
from io import FileIO
from pathlib import Path

import numpy as np
import pyarrow as pa

from .proposal import KINDS, Integers, ProposalKind, Proposals

logger = logging.getLogger(__name__)

#: Rows after which the journal is written anew without what has finished.
_ROTATE_ROWS = 200_000


def append_whole(file: FileIO, end: int, content: bytes) -> int:
    """Writes behind the first `end` bytes of an unbuffered file; returns where it ends now.

    Raises:
        OSError: It could not be written, as on a full disk; then nothing of it is left in the file.
    """
    left = memoryview(content)
    try:
        file.seek(end)
        while left:
            # A disk that is nearly full takes a part.
            left = left[file.write(left) :]
    except BaseException:
        file.truncate(end)
        raise
    return end + len(content)


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file of lines, which may end in a torn one.

    Raises:
        OSError: It could not be written; then nothing of it is in the file.
    """
    with path.open("a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        whole = file.read(1) in (b"", b"\n")
        append_whole(file, end, (line if whole else "\n" + line).encode() + b"\n")


class ProposalJournal:
    """Proposals in an Arrow stream that only grows, written anew now and then. Survives a kill at any moment.

    Arguments:
        path: The file; what an earlier process left there is kept until `rotate`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None
        self._end = self._rows = 0

    def read(self) -> Proposals:
        """All proposals in the journal; a batch that was not written to its end is left out."""
        parts: list[Proposals] = []
        with contextlib.suppress(FileNotFoundError, pa.ArrowInvalid, OSError), self.path.open("rb") as file:
            for batch in pa.ipc.open_stream(file):
                parts.append(_proposals(batch))
        return Proposals.concatenate(parts)

    def rotate(self, unfinished: Proposals) -> None:
        """Begins anew with what has not finished yet; the old contents stay until this is on disk.

        If that fails, as on a full disk, the old file goes on: it holds more than is needed.

        Raises:
            OSError: It failed the first time, when there is no old file to go on with.
        """
        try:
            file, end = _begun(self.path, unfinished)
        except OSError as error:
            if self._file is None:
                raise
            self._rows = 0
            logger.warning("%s cannot be written anew, which is tried again later: %s", self.path, error)
            return
        self.close()
        self._file, self._end, self._rows = file, end, len(unfinished)

    def record(self, proposals: Proposals, meanwhile: Callable[[], object]) -> None:
        """Writes proposals down; from now on they survive this process.

        Waits while that fails, as on a full disk: what is simulated without it would be lost with this process.

        Arguments:
            proposals: What is to be simulated.
            meanwhile: Called between two tries; takes a moment, and may raise to give up.
        """
        assert self._file is not None, "rotate comes first"
        if not len(proposals):
            return
        told = False
        while True:
            try:
                self._end = append_whole(self._file, self._end, _encoded(proposals, first=not self._end))
                break
            except OSError as error:
                if not told:
                    logger.warning("%d proposals wait to be written to %s: %s", len(proposals), self.path, error)
                told = True
            meanwhile()
        self._rows += len(proposals)

    @property
    def full(self) -> bool:
        """Whether it is time to `rotate`."""
        return self._rows > _ROTATE_ROWS

    def close(self) -> None:
        """Closes the file; what was recorded stays."""
        if self._file is not None:
            self._file.close()
        self._file = None


def _begun(path: Path, proposals: Proposals) -> tuple[FileIO, int]:
    """A file with these proposals, on disk in place of an earlier one, and where it ends."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    file = aside.open("wb", buffering=0)
    try:
        end = append_whole(file, 0, _encoded(proposals, first=True)) if len(proposals) else 0
        os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        file.close()
        aside.unlink(missing_ok=True)
        raise
    return file, end


def _encoded(proposals: Proposals, first: bool) -> bytes:
    """A batch of the stream; the first comes behind the schema."""
    batch = _batch(proposals)
    head = batch.schema.serialize().to_pybytes() if first else b""
    content: bytes = head + batch.serialize().to_pybytes()
    return content


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
