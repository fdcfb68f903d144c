"""What a campaign has spent: how busy workers were, what each kind of proposal cost, what runtime depends on.

Everything is computed from columns of the store as arrays, so that a million simulations take a moment.
"""

from __future__ import annotations

__all__ = ["DEPENDS", "KindCost", "Timeline", "cost_by_kind", "runtime_dependence", "timeline"]

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from simulators.outcome import Array

#: Share of the variance of log seconds above which runtime is said to depend on a parameter.
DEPENDS = 0.05
_BINS = 240
#: Two clocks time a simulation; what ends this little after the next has started does not overlap it.
_TOLERANCE = 1e-3
_GROUPS = 20


@dataclass(frozen=True)
class KindCost:
    """Simulations of one kind of proposal, and what they cost."""

    kind: str
    simulations: int
    failed: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Timeline:
    """Simulations at work over time.

    Attributes:
        edges: Bins, seconds since the first start, `(m + 1,)`.
        busy: Mean number of simulations at work in each, `(m,)`.
        slots: Most simulations at work at the same time.
        utilization: Simulator-seconds between the first and the last start, as a share of `slots` x that time.
    """

    edges: Array
    busy: Array
    slots: int
    utilization: float


def timeline(started: Array, seconds: Array, worker: np.ndarray) -> Timeline | None:
    """How many simulations were at work; None if there were fewer than two.

    Arguments:
        started: Unix time of each start, `(n,)`.
        seconds: Durations, `(n,)`.
        worker: Any label of the worker, `(n,)`. Simulations that one worker started at the same instant are one batch,
            and count as one after the other.
    """
    if len(started) < 2:
        return None
    begin = started.min()
    order = np.lexsort((started, worker))
    start, length = started[order] - begin, seconds[order]
    start = start + _within_batch(start, length, worker[order])
    end = start + length
    last = float(start.max())
    at_work = _time_at_work(np.sort(start), np.sort(end))
    edges = np.linspace(0.0, float(end.max()), _BINS + 1)
    width = edges[1] or 1.0
    slots = _most_at_once(start, start + np.maximum(0.5 * length, length - _TOLERANCE))
    total = float(at_work(np.array([last]))[0])
    return Timeline(edges, np.diff(at_work(edges)) / width, slots, total / (slots * last) if last > 0 else 1.0)


def cost_by_kind(table: pa.Table) -> list[KindCost]:
    """Costs of a table with the columns `proposal`, `status` and `seconds`, the most expensive kind first.

    Imported simulations have no seconds, and cost none.
    """
    failed = pc.cast(pc.not_equal(table["status"], "ok"), pa.int64())
    rows = (
        table.select(["proposal", "seconds"])
        .append_column("failed", failed)
        .group_by("proposal")
        .aggregate([("failed", "count"), ("failed", "sum"), ("seconds", "sum")])
        .to_pylist()
    )
    costs = [KindCost(r["proposal"], r["failed_count"], r["failed_sum"], r["seconds_sum"] or 0.0) for r in rows]
    return sorted(costs, key=lambda cost: -cost.seconds)


def runtime_dependence(theta: Array, seconds: Array) -> Array:
    """Share of the variance of log seconds that each parameter explains, `(d,)`: the correlation ratio over 20 groups.

    What chance alone would explain, 19 / (n - 1) on average, is subtracted.
    """
    n, d = theta.shape
    y = np.log(np.maximum(seconds, 1e-9))
    y = y - y.mean()
    total = float(np.square(y).sum())
    if n < 10 * _GROUPS or total <= 0.0:
        return np.zeros(d)
    found = np.empty(d)
    group = np.arange(n) * _GROUPS // n
    counts = np.bincount(group)
    for j in range(d):
        means = np.bincount(group, y[np.argsort(theta[:, j], kind="stable")]) / counts
        found[j] = float((counts * np.square(means)).sum()) / total
    return np.clip(found - (_GROUPS - 1) / (n - 1), 0.0, 1.0)


def _within_batch(start: Array, length: Array, worker: np.ndarray) -> Array:
    """Seconds that the earlier rows of its batch put before each row; rows sorted by worker and start."""
    before = np.concatenate([[0.0], np.cumsum(length)[:-1]])
    first = np.concatenate([[True], (start[1:] != start[:-1]) | (worker[1:] != worker[:-1])])
    return before - before[first][np.cumsum(first) - 1]


def _time_at_work(start: Array, end: Array) -> Callable[[Array], Array]:
    """The function `t -> sum_i min(max(t - start_i, 0), length_i)` of sorted starts and ends."""
    starts, ends = (np.concatenate([[0.0], np.cumsum(values)]) for values in (start, end))

    def before(t: Array) -> Array:
        begun, ended = np.searchsorted(start, t), np.searchsorted(end, t)
        return (begun * t - starts[begun]) - (ended * t - ends[ended])

    return before


def _most_at_once(start: Array, end: Array) -> int:
    times = np.concatenate([start, end])
    steps = np.concatenate([np.ones(len(start), dtype=np.int64), -np.ones(len(end), dtype=np.int64)])
    # At one instant, ends come before starts.
    order = np.lexsort((steps, times))
    return max(1, int(np.cumsum(steps[order]).max()))
