"""Observations of the tasks, and exact draws of their tempered posteriors, as stored in `benchmarks/references`."""

from __future__ import annotations

__all__ = ["FOLDER", "exact_draws", "observed"]

from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

FOLDER = Path(__file__).with_name("references")


def observed(task: str, number: int) -> Tensor:
    """Observation `(k,)` of that number."""
    table = _table(f"{task}_observations").set_index("observation")
    return torch.tensor(np.array(table.loc[number, "x"]), dtype=torch.float64)


def exact_draws(task: str, number: int, beta: float) -> Tensor:
    """Draws `(2000, d)` of `p_beta(theta | x)` at that observation."""
    table = _table(task)
    same = (table["observation"] == number) & np.isclose(table["beta"], beta)
    return torch.tensor(np.stack(table.loc[same, "theta"].to_list()))


@lru_cache
def _table(name: str) -> pd.DataFrame:
    return pd.read_parquet(FOLDER / f"{name}.parquet")
