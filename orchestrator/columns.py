"""Rows of the store as Arrow columns, and back to arrays. A million rows are never a million objects."""

from __future__ import annotations

__all__ = ["GROUP_NUMBERS", "GROUP_ROWS", "PARQUET", "SCHEMA", "in_order", "split_columns", "to_table"]

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from simulators.outcome import STATUSES, Array

from .proposal import KINDS, Finished

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

#: How files are written: what repeats goes into dictionaries, ids are nearly a range, results hardly shrink.
PARQUET: dict[str, Any] = {
    "compression": "snappy",
    "use_dictionary": ["status", "reason", "attempts", "worker", "proposal"],
    "column_encoding": {"id": "DELTA_BINARY_PACKED", "started": "DELTA_BINARY_PACKED"},
    "store_schema": False,
}

#: Rows, and numbers in x, that are one row group at most: what writing and merging hold in memory.
GROUP_ROWS, GROUP_NUMBERS = 1 << 16, 1 << 21

_STATUSES = pa.array([str(status) for status in STATUSES])
_KINDS = pa.array([str(kind) for kind in KINDS])


def to_table(rows: Finished) -> pa.Table:
    """The columns of `SCHEMA`; NaN densities, temperatures and times, and negative seeds, become null."""
    proposals, outcomes = rows.proposals, rows.outcomes
    n, d = proposals.theta.shape
    ends = np.concatenate([[0], np.cumsum(outcomes.lengths.clip(0))]).astype(np.int32)
    columns = {
        "id": pa.array(proposals.id),
        "theta": _lists(np.arange(n + 1, dtype=np.int32) * d, proposals.theta.ravel()),
        "x": _lists(ends, outcomes.values, outcomes.lengths < 0),
        "status": pa.DictionaryArray.from_arrays(outcomes.status, _STATUSES),
        "reason": _reasons(outcomes.reasons, n),
        "attempts": pa.array(rows.attempts.astype(np.int32)),
        "worker": pa.array(rows.worker, pa.string()).dictionary_encode(),
        "started": _timestamps(outcomes.started),
        "seconds": _nullable(outcomes.seconds),
        "proposal": pa.DictionaryArray.from_arrays(proposals.kind, _KINDS),
        "proposal_log_density": _nullable(proposals.log_density),
        "beta": _nullable(proposals.beta),
        "seed": pa.array(proposals.seed, mask=proposals.seed < 0),
    }
    return pa.table({name: columns[name] for name in SCHEMA.names})


def in_order(table: pa.Table) -> pa.Table:
    """The rows in the order of their ids, each id once."""
    ids = table["id"].to_numpy()
    if (ids[1:] > ids[:-1]).all():
        return table
    order = np.argsort(ids, kind="stable")
    first = np.concatenate([[True], np.diff(ids[order]) > 0])
    return table.combine_chunks().take(pa.array(order[first]))


def split_columns(table: pa.Table) -> tuple[Array, Array]:
    """`theta` `(n, d)` and `x` `(n, k)` of a table.

    `k` is the greatest length; rows without a result, or with a shorter one, are NaN.
    """
    n = len(table)
    theta = _numbers(table["theta"]).reshape(n, -1) if n else np.zeros((0, 0))
    x = table["x"]
    lengths = pc.fill_null(pc.list_value_length(x), -1).to_numpy()
    width = int(lengths.max(initial=0))
    fits = lengths == width
    values = _numbers(x)
    if fits.all():
        return theta, values.reshape(n, width)
    matrix = np.full((n, width), np.nan)
    if width:
        matrix[fits] = values[np.repeat(fits, lengths.clip(0))].reshape(-1, width)
    return theta, matrix


def _numbers(lists: pa.ChunkedArray) -> Array:
    """All numbers of a column of lists, one list after the other."""
    chunks = [pc.list_flatten(chunk).to_numpy(zero_copy_only=False) for chunk in lists.chunks]
    return np.concatenate(chunks) if chunks else np.zeros(0)


def _lists(ends: np.ndarray[Any, Any], values: Array, missing: np.ndarray[Any, Any] | None = None) -> pa.Array:
    mask = None if missing is None else pa.array(missing)
    return pa.ListArray.from_arrays(pa.array(ends), pa.array(values), mask=mask)


def _nullable(values: Array) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))


def _timestamps(seconds: Array) -> pa.Array:
    unknown = np.isnan(seconds)
    microseconds = (np.where(unknown, 0.0, seconds) * 1e6).round().astype(np.int64)
    return pa.array(microseconds, mask=unknown).cast(SCHEMA.field("started").type)


def _reasons(reasons: dict[int, str], n: int) -> pa.Array:
    codes = np.zeros(n, dtype=np.int32)
    known: dict[str, int] = {"": 0}
    if reasons:
        rows = np.fromiter(reasons, np.int64, len(reasons))
        codes[rows] = [known.setdefault(reason, len(known)) for reason in reasons.values()]
    # What a program prints need not be text.
    texts = [reason.encode("utf-8", "replace").decode() for reason in known]
    return pa.DictionaryArray.from_arrays(codes, pa.array(texts, pa.string()))
