"""What a benchmark has measured so far: rows of a Parquet file by cell, so that what is there is not run again."""

from __future__ import annotations

__all__ = ["Cells"]

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd


class Cells:
    """See the module.

    Arguments:
        file: The Parquet file, which need not exist.

    Attributes:
        table: All rows; a cell's have the columns of its key.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.table = pd.read_parquet(file) if file.exists() else pd.DataFrame()

    def of(self, key: Mapping[str, Any]) -> pd.DataFrame:
        """The rows of a cell; none if it has not been run."""
        return self.table[self._mask(key)]

    def put(self, key: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
        """Writes the rows of a cell, in place of those that it had; returns them."""
        cell = pd.DataFrame(list(rows)).assign(**key)
        self.table = pd.concat([self.table[~self._mask(key)], cell], ignore_index=True)
        self.table.to_parquet(self.file)
        return cell

    def _mask(self, key: Mapping[str, Any]) -> pd.Series:
        mask = pd.Series(True, index=self.table.index)
        for name, value in key.items():
            if len(self.table):
                mask &= self.table[name] == value
        return mask
