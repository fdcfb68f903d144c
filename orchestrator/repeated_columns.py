"""Tables in which two columns have one name: which of them is meant, nobody can say."""

from __future__ import annotations

__all__ = ["repeated_columns"]

from collections import Counter
from pathlib import Path

import pandas as pd


def repeated_columns(path: Path, frame: pd.DataFrame) -> set[str]:
    """Names that head more than one column of the table in `path`, which is read as `frame`.

    pandas gives the second column of a CSV file another name, so that its first line is read once more.
    """
    names = list(frame.columns)
    if path.suffix.lower() == ".csv":
        names = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0].dropna().tolist()
    return {name for name, count in Counter(map(str, names)).items() if count > 1}
