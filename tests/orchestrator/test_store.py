"""The store: rows appear whole, stay, and open with plain tools."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pytest

from orchestrator.proposal import Finished, Proposal, ProposalKind, row_seed
from orchestrator.store import SCHEMA, SimulationStore, split_columns
from simulators.errors import RunDirectoryError
from simulators.outcome import Outcome, Status


def finished(i: int, x: list[float] | None = None, status: Status = Status.OK) -> Finished:
    proposal = Proposal(i, np.array([i, 0.5]), None if i % 2 else 0.3, ProposalKind.PRIOR, -1.0, row_seed(0, i))
    values = None if status is not Status.OK else np.array([1.0, 2.0] if x is None else x)
    return Finished(proposal, Outcome(status, values, "" if status is Status.OK else "why", 1e9, 0.1), 1, "host:1")


def test_rows_come_back_in_order_with_all_columns(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    store.append([finished(3), finished(1)])
    store.append([finished(2, status=Status.TIMEOUT)])
    table = store.read()
    assert table.schema.names == SCHEMA.names
    assert table["id"].to_pylist() == [1, 2, 3]
    assert table["status"].to_pylist() == ["ok", "timeout", "ok"]
    assert table["x"].to_pylist()[1] is None
    assert table["beta"].to_pylist() == [None, 0.3, None]
    assert len(store) == 3


def test_plain_pyarrow_and_pandas_open_it(tmp_path: Path) -> None:
    SimulationStore(tmp_path).append([finished(0), finished(1, status=Status.RAISED)])
    assert ds.dataset(tmp_path).count_rows() == 2
    frame = pd.read_parquet(tmp_path)
    assert frame.loc[frame["id"] == 0, "theta"].iloc[0].tolist() == [0.0, 0.5]


def test_an_unfinished_file_is_never_seen(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    store.append([finished(0)])
    (tmp_path / ".000000000001-abc.parquet.tmp").write_bytes(b"PAR1 half a fi")
    assert store.read()["id"].to_pylist() == [0]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    (tmp_path / "000000000001-abc.parquet").write_bytes(b"garbage")
    with pytest.raises(RunDirectoryError, match=r"cannot be read.*move the damaged file"):
        store.read()


def test_an_id_counts_once(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    store.append([finished(0)])
    store.append([finished(0), finished(1)])
    assert store.read()["id"].to_pylist() == [0, 1]


def test_the_digest_depends_on_content_not_on_files(tmp_path: Path) -> None:
    one, two = SimulationStore(tmp_path / "a"), SimulationStore(tmp_path / "b")
    one.append([finished(0), finished(1)])
    two.append([finished(1)])
    before = two.digest()
    two.append([finished(0)])
    assert one.digest() == two.digest() != before


def test_failures_are_rows_of_nan(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    store.append([finished(0), finished(1, status=Status.CRASHED)])
    theta, x = split_columns(store.read())
    assert theta.shape == (2, 2)
    assert np.isnan(x[1]).all()
    assert x[0].tolist() == [1.0, 2.0]


def test_seeds_differ_between_rows_and_campaigns() -> None:
    seeds = {row_seed(c, i) for c in range(10) for i in range(100)}
    assert len(seeds) == 1000
    assert row_seed(1, 2) == row_seed(1, 2)
