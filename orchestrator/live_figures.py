"""Figures of a campaign that is still running, drawn from its run directory by the process that talks to MLflow."""

from __future__ import annotations

__all__ = ["draw", "drawn"]

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from .run_directory import RunDirectory
from .store import split_columns

#: More points than this cannot be told apart.
_ROWS = 5000


def draw(directory: Path, folder: Path, step: int) -> None:
    """Draws the campaign as it is into `folder/figures`, under the number of its simulations."""
    target = folder / "figures"
    target.mkdir(exist_ok=True)
    for name, figure in _figures(RunDirectory(directory)):
        figure.savefig(target / f"{name}-{step:09d}.png", dpi=80)


def drawn(folder: Path, step: int) -> dict[str, Path]:
    """What was drawn at that number of simulations, by name."""
    suffix = f"-{step:09d}.png"
    return {path.name.removesuffix(suffix): path for path in sorted((folder / "figures").glob(f"*{suffix}"))}


def _figures(run: RunDirectory) -> Iterator[tuple[str, Figure]]:
    from .figures import progress, simulations_over_time

    table = run.store().read(["theta", "beta", "proposal"])
    if len(table):
        table = table.take(np.unique(np.linspace(0, len(table) - 1, _ROWS).astype(int)))
        theta, _ = split_columns(table.append_column("x", table["theta"]))
        beta = np.array([np.nan if b is None else b for b in table["beta"].to_pylist()])
        names = run.records()["names"]
        yield "simulations", simulations_over_time(theta, beta, table["proposal"].to_pylist(), names)
    if run.metrics.exists():
        yield "progress", progress(pd.read_json(run.metrics, lines=True))
