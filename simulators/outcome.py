"""What became of simulations: results, or failures with their reasons. Failures are data too."""

from __future__ import annotations

__all__ = ["STATUSES", "Outcome", "Outcomes", "Status", "flatten_output", "not_finite"]

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Codes = np.ndarray[Any, np.dtype[np.uint8]]
Lengths = np.ndarray[Any, np.dtype[np.int64]]


class Status(enum.StrEnum):
    """Kinds of outcome, as stored in the column `status`."""

    OK = "ok"
    RAISED = "raised"
    NOT_FINITE = "not_finite"
    WRONG_TYPE = "wrong_type"
    WRONG_SHAPE = "wrong_shape"
    TIMEOUT = "timeout"
    CRASHED = "crashed"
    WORKER_LOST = "worker_lost"
    OUT_OF_MEMORY = "out_of_memory"

    @property
    def code(self) -> int:
        """Position in `STATUSES`: how columns of many outcomes hold it."""
        return _CODES[self]


STATUSES: tuple[Status, ...] = tuple(Status)
_CODES = {status: code for code, status in enumerate(STATUSES)}


@dataclass(frozen=True)
class Outcome:
    """One simulation's end.

    Attributes:
        status: OK, or the kind of failure.
        x: Result `(k,)` in double precision; None unless `status` is OK.
        reason: Empty if OK, else what happened, for a person to read.
        started: Unix time in seconds.
        seconds: Wall-clock time of the simulation.
    """

    status: Status
    x: Array | None
    reason: str
    started: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Outcomes(Sequence[Outcome]):
    """The ends of `n` simulations by columns: a million of them must not be a million objects.

    Attributes:
        status: `(n,)` positions in `STATUSES`.
        lengths: `(n,)` length of each result, -1 where there is none.
        values: All results one after the other, `(sum of lengths,)`.
        started: `(n,)` Unix times in seconds.
        seconds: `(n,)` wall-clock times of the simulations.
        reasons: Row to reason, for failures.
    """

    status: Codes
    lengths: Lengths
    values: Array
    started: Array
    seconds: Array
    reasons: dict[int, str]

    @classmethod
    def from_rows(cls, rows: Sequence[Outcome]) -> Outcomes:
        """The columns of single outcomes."""
        results = [row.x for row in rows if row.x is not None]
        return cls(
            np.array([row.status.code for row in rows], dtype=np.uint8),
            np.array([-1 if row.x is None else len(row.x) for row in rows], dtype=np.int64),
            np.concatenate(results) if results else np.zeros(0),
            np.array([row.started for row in rows], dtype=np.float64),
            np.array([row.seconds for row in rows], dtype=np.float64),
            {i: row.reason for i, row in enumerate(rows) if row.reason},
        )

    @classmethod
    def failed(cls, n: int, status: Status, reason: str, started: float, seconds: float) -> Outcomes:
        """`n` failures of one kind."""
        return cls(
            np.full(n, status.code, dtype=np.uint8),
            np.full(n, -1, dtype=np.int64),
            np.zeros(0),
            np.full(n, started),
            np.full(n, seconds),
            dict.fromkeys(range(n), reason),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Outcomes]) -> Outcomes:
        """All parts, one after the other."""
        if len(parts) == 1:
            return parts[0]
        reasons: dict[int, str] = {}
        begin = 0
        for part in parts:
            reasons.update({begin + row: reason for row, reason in part.reasons.items()})
            begin += len(part)
        if not parts:
            return cls.from_rows([])
        return cls(
            np.concatenate([part.status for part in parts]),
            np.concatenate([part.lengths for part in parts]),
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.started for part in parts]),
            np.concatenate([part.seconds for part in parts]),
            reasons,
        )

    @property
    def ok(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which simulations have a result, `(n,)`."""
        return self.status == Status.OK.code

    def has(self, *statuses: Status) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which simulations ended in one of `statuses`, `(n,)`."""
        return np.isin(self.status, [status.code for status in statuses])

    def matrix(self, width: int) -> Array:
        """`x` `(n, width)`; rows of failures, and of results of another length, are NaN."""
        x = np.full((len(self), width), np.nan)
        fits = self.lengths == width
        if fits.any():
            x[fits] = self.values[np.repeat(fits, self.lengths.clip(0))].reshape(-1, width)
        return x

    def take(self, rows: np.ndarray[Any, Any]) -> Outcomes:
        """Some rows, by a mask `(n,)` or by positions in increasing order."""
        positions = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        if len(positions) == len(self):
            return self
        kept = np.zeros(len(self), dtype=bool)
        kept[positions] = True
        reasons = self.reasons
        if reasons:
            reasons = {new: reasons[old] for new, old in enumerate(positions.tolist()) if old in reasons}
        return Outcomes(
            self.status[positions],
            self.lengths[positions],
            self.values[np.repeat(kept, self.lengths.clip(0))],
            self.started[positions],
            self.seconds[positions],
            reasons,
        )

    def failing(self, rows: np.ndarray[Any, np.dtype[np.bool_]], status: Status, reasons: dict[int, str]) -> Outcomes:
        """The same with some rows turned into failures; `reasons` by row."""
        code = self.status.copy()
        code[rows] = status.code
        lengths = np.where(rows, -1, self.lengths)
        values = self.values[np.repeat(~rows, self.lengths.clip(0))]
        return Outcomes(code, lengths, values, self.started, self.seconds, {**self.reasons, **reasons})

    def __len__(self) -> int:
        return len(self.status)

    @overload
    def __getitem__(self, row: int) -> Outcome: ...
    @overload
    def __getitem__(self, row: slice) -> Outcomes: ...
    def __getitem__(self, row: int | slice) -> Outcome | Outcomes:
        if isinstance(row, slice):
            return self.take(np.arange(len(self))[row])
        row = range(len(self))[row]
        length = int(self.lengths[row])
        begin = int(self.lengths[:row].clip(0).sum())
        x = None if length < 0 else self.values[begin : begin + length]
        status = STATUSES[self.status[row]]
        return Outcome(status, x, self.reasons.get(row, ""), float(self.started[row]), float(self.seconds[row]))


def flatten_output(result: Any) -> tuple[Status, Array | None, str]:
    """A simulator's return value as one vector: `(status, x (k,), reason)`.

    Scalars, sequences, arrays, torch tensors and dictionaries of these (in their own order) are accepted.
    """
    if result is None:
        return Status.WRONG_TYPE, None, "the simulator returned None; it must return an array of numbers"
    try:
        parts = list(result.values()) if isinstance(result, dict) else [result]
        arrays = [np.asarray(_to_numpy(part)) for part in parts]
        for array in arrays:
            if array.dtype.kind not in "fiub":
                raise TypeError(f"values of type {array.dtype}")
        x = np.concatenate([array.astype(np.float64).ravel() for array in arrays])
    except (TypeError, ValueError) as error:
        kind = type(result).__name__
        return Status.WRONG_TYPE, None, f"expected an array of real numbers, got {kind}: {error}"
    if x.size == 0:
        return Status.WRONG_SHAPE, None, "the simulator returned an empty array"
    bad = int(x.size - np.isfinite(x).sum())
    if bad:
        return Status.NOT_FINITE, None, not_finite(bad, x.size)
    return Status.OK, x, ""


def not_finite(bad: int, size: int) -> str:
    """The reason of a result with values that are no numbers."""
    return f"{bad} of {size} values are NaN or infinite"


def _to_numpy(part: Any) -> Any:
    if isinstance(part, np.ma.MaskedArray):  # What is masked is missing, whatever lies beneath.
        return np.where(np.ma.getmaskarray(part), np.nan, part.data)
    return part.detach().cpu().numpy() if hasattr(part, "detach") else part
