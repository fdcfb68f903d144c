"""What became of one simulation: a result, or a failure with its reason. Failures are data too."""

from __future__ import annotations

__all__ = ["Outcome", "Status", "flatten_output"]

import enum
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]


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
    if not np.isfinite(x).all():
        bad = int((~np.isfinite(x)).sum())
        return Status.NOT_FINITE, None, f"{bad} of {x.size} values are NaN or infinite"
    return Status.OK, x, ""


def _to_numpy(part: Any) -> Any:
    if isinstance(part, np.ma.MaskedArray):  # What is masked is missing, whatever lies beneath.
        return np.where(np.ma.getmaskarray(part), np.nan, part.data)
    return part.detach().cpu().numpy() if hasattr(part, "detach") else part
