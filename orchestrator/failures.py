"""Why simulations failed, in numbers."""

from __future__ import annotations

__all__ = ["failure_table"]

from typing import Any

import pyarrow.compute as pc

from simulators.outcome import Status

from .store import SimulationStore

_MOST = 100


def failure_table(store: SimulationStore) -> list[dict[str, Any]]:
    """`status`, `reason` and number of `simulations` of the most frequent failures, those first."""
    table = store.read(["status", "reason"])
    table = table.filter(pc.not_equal(table["status"], str(Status.OK)))
    groups = table.group_by(["status", "reason"]).aggregate([("id", "count")])
    rows: list[dict[str, Any]] = groups.rename_columns({"id_count": "simulations"}).to_pylist()
    return sorted(rows, key=lambda row: -row["simulations"])[:_MOST]
