"""Rows of numbers that may be more than memory holds: few are kept in memory, many in a file, and read in pieces.

A million simulations of a hundred numbers are 800 MB, and each careless copy as much again. Here they go to a temporary
file (of the folder that TMPDIR names) as soon as they are large, and whoever wants them gets a piece at a time.
"""

from __future__ import annotations

__all__ = ["RowView", "Rows", "evenly"]

import tempfile
from collections.abc import Iterator
from typing import IO

import numpy as np
import torch
from torch import Tensor

#: Bytes up to which rows stay in memory.
_IN_MEMORY = 1 << 28
#: Numbers in a piece.
_PIECE = 1 << 22


class Rows:
    """Rows `(n, k)` of double precision, appended and read by position.

    Arguments:
        in_memory: Bytes beyond which they are kept in a file, which is gone with the object.
    """

    def __init__(self, in_memory: int = _IN_MEMORY) -> None:
        self._in_memory = in_memory
        self._rows = torch.zeros(0, 0, dtype=torch.float64)
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def width(self) -> int:
        """k; zero before there are rows."""
        return self._rows.shape[1]

    def append(self, rows: Tensor) -> None:
        """Adds rows `(m, k)`."""
        if not len(self):
            self._rows = rows.new_zeros(0, rows.shape[1], dtype=torch.float64)
        total = (len(self) + len(rows)) * self.width
        if self._file is None and 8 * total <= self._in_memory:
            self._rows = torch.cat([self._rows, rows])
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="temperflow")  # noqa: SIM115
            self._write(self._rows)
        self._write(rows)
        mapped: np.ndarray = np.memmap(self._file, np.float64, "r+")
        self._rows = torch.from_numpy(mapped.reshape(-1, self.width))

    def __getitem__(self, positions: Tensor) -> Tensor:
        """The rows at `positions` `(m,)`, a copy."""
        return self._rows[positions]

    def pieces(self, positions: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """The rows at `positions` `(m,)`, some at a time: which of them, and a copy."""
        step = max(1, _PIECE // max(1, self.width))
        for start in range(0, len(positions), step):
            part = slice(start, min(start + step, len(positions)))
            yield part, self._rows[positions[part]]

    def _write(self, rows: Tensor) -> None:
        assert self._file is not None
        rows.contiguous().numpy().tofile(self._file)
        self._file.flush()


class RowView:
    """Some rows of others: those at `positions` `(m,)`, without a copy."""

    def __init__(self, rows: Rows, positions: Tensor) -> None:
        self.rows, self.positions = rows, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Tensor) -> Tensor:
        return self.rows[self.positions[index]]


def evenly(positions: Tensor, most: int) -> Tensor:
    """`positions` `(m,)`, or `most` of them, spread evenly."""
    if len(positions) <= most:
        return positions
    return positions[torch.linspace(0, len(positions) - 1, most, dtype=torch.float64).long().to(positions.device)]
