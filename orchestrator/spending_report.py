"""What a campaign has spent so far, in figures: for its report, and for MLflow while it runs."""

from __future__ import annotations

__all__ = ["COLUMNS", "busy_times", "read_history", "simulated", "spending_figures"]

import contextlib
import json
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from simulators.outcome import Array

from .figures import MOST_POINTS, cost, progress, simulations_over_time, utilization
from .report import ReportFigure
from .run_directory import RunDirectory
from .spending import DEPENDS, Timeline, runtime_dependence, timeline

#: Columns of the store that are looked at.
COLUMNS = ("theta", "status", "reason", "worker", "started", "seconds", "proposal", "beta")
#: Rows whose runtimes are compared with their parameters.
_COST_ROWS = 50_000


def spending_figures(
    table: pa.Table, names: Sequence[str], history: pd.DataFrame, times: Timeline | None
) -> list[ReportFigure]:
    """The figures, of what there is.

    Arguments:
        table: Columns `COLUMNS` of the store.
        names: Names of the parameters.
        history: See `read_history`.
        times: See `busy_times`.
    """
    found = []
    if len(history):
        caption = "Simulations and held-out losses."
        found.append(ReportFigure("The campaign over time", caption, progress(history), "spent", "progress"))
    if times is not None:
        caption = (
            f"Simulations at work, averaged over {float(times.edges[1]):.2g} s. Dashed: the most that ever were at the "
            "same time. Pauses of the campaign, and waiting for a model, count as idle."
        )
        found.append(ReportFigure("How busy the workers were", caption, utilization(times), "spent", "utilization"))
    if not len(table):
        return found
    timed = simulated(table)
    if len(timed):
        rows = np.random.default_rng(0).choice(len(timed), min(_COST_ROWS, len(timed)), replace=False)
        theta, seconds = _theta(timed), timed["seconds"].to_numpy()
        explained = runtime_dependence(theta[rows], seconds[rows])
        caption = "Runtime does not depend noticeably on any single parameter."
        if explained.max() > DEPENDS:
            caption = "Shares are those of the variance of log seconds that a parameter explains by itself."
        picture = cost(seconds, theta, names, explained)
        found.append(ReportFigure("What simulations cost", caption, picture, "spent", "cost"))
    caption = "Parameters in the order of the simulations."
    if len(table) > MOST_POINTS:
        caption = f"Parameters in the order of the simulations, a random {MOST_POINTS:,} of {len(table):,}."
    picture = simulations_over_time(_theta(table), table["beta"].to_numpy(), _labels(table["proposal"]), names)
    return [*found, ReportFigure("Where the simulations went", caption, picture, "simulations", "simulations")]


def read_history(run: RunDirectory) -> pd.DataFrame:
    """The campaign's metrics, a row for each time that they were written down; torn lines are left out.

    A machine that goes down leaves half a line, or zeros: no reason to lose the report.
    """
    rows = []
    for line in run.metrics.read_bytes().splitlines() if run.metrics.exists() else ():
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
            rows += [row] if isinstance(row, dict) else []
    return pd.DataFrame(rows)


def busy_times(timed: pa.Table) -> Timeline | None:
    """How busy the workers were, by the rows that the campaign has simulated."""
    started = timed["started"].cast(pa.int64()).to_numpy() / 1e6
    return timeline(started, timed["seconds"].to_numpy(), _codes(timed["worker"]))


def simulated(table: pa.Table) -> pa.Table:
    """The rows that the campaign has simulated; imported ones have no times."""
    if table["started"].null_count == table["seconds"].null_count == 0:
        return table
    return table.filter(pc.and_(table["started"].is_valid(), table["seconds"].is_valid()))


def _theta(table: pa.Table) -> Array:
    """`(n, d)`."""
    column = table["theta"].combine_chunks()
    values: Array = column.flatten().to_numpy()
    return values.reshape(len(table), -1)


def _codes(column: pa.ChunkedArray) -> np.ndarray:
    """A number for each distinct text."""
    return column.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)


def _labels(column: pa.ChunkedArray) -> np.ndarray:
    encoded = column.combine_chunks().dictionary_encode()
    return encoded.dictionary.to_numpy(zero_copy_only=False)[encoded.indices.to_numpy(zero_copy_only=False)]
