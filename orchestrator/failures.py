"""Why simulations failed, in numbers."""

from __future__ import annotations

__all__ = ["failure_table"]

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from simulators.outcome import Status


def failure_table(table: pa.Table, most: int) -> list[dict[str, Any]]:
    """`status`, `reason` and number of `simulations` of the `most` frequent failures, those first.

    Arguments:
        table: Columns `id`, `status` and `reason` of the store.
        most: How many.
    """
    failed = table.filter(pc.not_equal(table["status"], str(Status.OK))).group_by(["status", "reason"])
    counted = failed.aggregate([("id", "count")]).rename_columns({"id_count": "simulations"})
    rows: list[dict[str, Any]] = counted.sort_by([("simulations", "descending")]).slice(0, most).to_pylist()
    return rows
