"""The store: rows appear whole, stay, and open with plain tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from rows import finished

from orchestrator.columns import GROUP_ROWS
from orchestrator.location import Folder
from orchestrator.proposal import Finished, ProposalKind, Proposals, row_seeds
from orchestrator.run_directory import RunDirectory
from orchestrator.store import SCHEMA, SimulationStore, StoreSummary, split_columns
from simulators.errors import RunDirectoryError
from simulators.outcome import Outcome, Outcomes, Status


def test_rows_come_back_in_order_with_all_columns(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    store.append(finished([3, 1]))
    store.append(finished([2], failing=[2]))
    table = store.read()
    assert table.schema.equals(SCHEMA)
    row = {"theta": [1.0, 0.5], "x": [1.0, 2.0], "status": "ok", "reason": "", "attempts": 1, "worker": "host:1"}
    row |= {"id": 1, "seconds": 0.5, "proposal": "prior", "proposal_log_density": -1.0, "beta": None, "seed": 101}
    row["started"] = pd.Timestamp(1.7e9 + 1, unit="s", tz="UTC")
    assert table.to_pylist()[0] == row
    assert table["id"].to_pylist() == store.ids().tolist() == [1, 2, 3]
    assert table["status"].to_pylist() == ["ok", "timeout", "ok"]
    assert table["reason"].to_pylist() == ["", "too slow", ""]
    assert table["x"].to_pylist()[1] is None
    assert table["beta"].to_pylist() == [None, 0.3, None]
    assert table["proposal_log_density"].to_pylist() == [-1.0, -1.0, None]
    assert len(store) == 3


def test_chosen_columns_come_with_the_id(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    store.append(finished([1, 0]))
    assert store.read(["seconds", "x"]).column_names == ["id", "seconds", "x"]


@pytest.mark.parametrize("rows", [1, 3, 4, 100])
def test_pieces_are_what_is_read(tmp_path: Path, rows: int) -> None:
    store = SimulationStore(tmp_path)
    store.append(finished([0, 2, 9, 4], failing=[9]))
    store.append(finished([7, 1, 30], failing=[1], kind=ProposalKind.TEMPERED))
    pieces = list(store.pieces(["x"], rows))
    assert max(map(len, pieces)) == min(rows, 7)
    assert pa.concat_tables(pieces).equals(store.read(["x"]))
    good = SimulationStore.successes(ProposalKind.PRIOR)
    chosen = pa.concat_tables(store.pieces(["x"], rows, good))
    assert chosen.equals(store.read(["x"], good))
    assert chosen["id"].to_pylist() == [0, 2, 4]
    assert list(SimulationStore(tmp_path / "none").pieces(["x"])) == []


def test_an_empty_store_is_empty(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path / "none")
    store.append(Finished.none())
    assert len(store) == 0
    assert store.read().schema.equals(SCHEMA)
    assert store.summary() == StoreSummary()
    assert store.compact() == 0
    theta, x = split_columns(store.read())
    assert len(theta) == len(x) == 0
    assert not (tmp_path / "none").exists()


def test_a_folder_made_while_it_is_listed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SimulationStore(tmp_path / "store")

    class FilesOfNow(fs.FileSystemHandler):
        """As Arrow at that moment: opening the folder failed, but when it is asked whether it is there, it is."""

        def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
            monkeypatch.undo()
            store.append(finished([1, 2]))
            raise FileNotFoundError(f"Cannot list directory '{selector.base_dir}'")

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} is not expected")

    FilesOfNow.__abstractmethods__ = frozenset()
    monkeypatch.setattr(Folder, "filesystem", fs.PyFileSystem(FilesOfNow()))
    assert store.ids().tolist() == [1, 2]


def test_plain_pyarrow_and_pandas_open_it(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    for i in range(0, 20, 2):
        store.append(finished([i, i + 1], failing=[3]))
    for _ in ("as written", "compacted"):
        assert ds.dataset(tmp_path).count_rows() == 20
        frame = pd.read_parquet(tmp_path).set_index("id").sort_index()
        assert frame.loc[5, "theta"].tolist() == [5.0, 0.5]
        assert frame.loc[3, "x"] is None
        store.compact()
    assert len(list(tmp_path.glob("*.parquet"))) == 1


def test_an_unfinished_file_is_never_seen(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    store.append(finished([0]))
    (tmp_path / ".000000000001-abc.parquet.tmp").write_bytes(b"PAR1 half a fi")
    assert store.read()["id"].to_pylist() == [0]


@pytest.mark.parametrize("content", ["garbage", "foreign", "torn"])
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    store = SimulationStore(tmp_path)
    store.append(finished([0]))
    damaged = tmp_path / "000000000001-abc.parquet"
    if content == "foreign":
        pq.write_table(pa.table({"a": [1]}), damaged)
    else:
        whole = next(tmp_path.glob("*.parquet")).read_bytes()
        damaged.write_bytes(b"garbage" if content == "garbage" else whole[:-200])
    for use in (store.read, store.summary, store.digest, lambda: len(store)):
        with pytest.raises(RunDirectoryError, match=r"cannot be read: .*1-abc\.parquet.*move the damaged file"):
            use()


def test_rows_of_a_newer_version_are_explained(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    store.append(finished([0]))
    table = store.read()
    table = table.set_column(table.column_names.index("status"), "status", pa.array(["eaten"]))
    pq.write_table(table, next(tmp_path.glob("*.parquet")))
    with pytest.raises(RunDirectoryError, match=r"eaten.*upgrade"):
        store.summary()


def test_an_id_counts_once(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    store.append(finished([0]))
    store.append(finished([0, 1]))
    assert store.read()["id"].to_pylist() == [0, 1]
    assert len(store) == 2
    assert store.summary().rows == 2


def test_appending_the_same_rows_again_writes_nothing_twice(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    for _ in range(2):
        store.append(finished([0, 1]))
    assert ds.dataset(tmp_path).count_rows() == 2


def test_the_digest_depends_on_content_not_on_files(tmp_path: Path) -> None:
    one, two = SimulationStore(tmp_path / "a"), SimulationStore(tmp_path / "b")
    one.append(finished(range(8), failing=[2]))
    two.append(finished([5, 1, 7, 2], failing=[2]))
    before = two.digest()
    two.append(finished([6, 0, 3, 4]))
    assert one.digest() == two.digest() != before
    two.compact()
    assert one.digest() == two.digest()
    other = SimulationStore(tmp_path / "c")
    other.append(finished(range(8), failing=[3]))
    assert other.digest() != one.digest()


def test_failures_and_other_lengths_are_rows_of_nan(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    outcomes = [Outcome(Status.OK, np.arange(float(k)), "", 1e9, 0.1) for k in (2, 3, 3)]
    outcomes.append(Outcome(Status.CRASHED, None, "signal 11", 1e9, 0.1))
    proposals = Proposals.of_kind(0, np.arange(8.0).reshape(4, 2), ProposalKind.SOBOL, 0)
    workers = np.full(4, "h:1", dtype=object)
    store.append(Finished(proposals, Outcomes.from_rows(outcomes), np.ones(4, dtype=np.int64), workers))
    theta, x = split_columns(store.read())
    assert theta.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert np.isnan(x[[0, 3]]).all()
    assert x[[1, 2]].tolist() == [[0, 1, 2], [0, 1, 2]]


def test_the_summary_counts_what_is_there(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    store.append(finished(range(10), failing=[1, 2]))
    store.append(finished(range(20, 25), failing=[21], kind=ProposalKind.CALIBRATION_PRIOR))
    summary = store.summary()
    assert summary.by_kind == {"prior": 10, "calibration-prior": 5}
    assert summary.counts[ProposalKind.CALIBRATION_PRIOR, Status.OK] == 4
    assert summary.seconds == pytest.approx(3 * 2.0 + 12 * 0.5)
    assert summary.learning_seconds == pytest.approx(2 * 2.0 + 8 * 0.5)
    assert (summary.rows, summary.highest_id, summary.width) == (15, 24, 2)
    later = store.summary(since=21)
    assert (later.rows, later.by_kind) == (4, {"calibration-prior": 4})
    assert store.summary(since=99) == StoreSummary()


def test_only_failures_have_no_width(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    store.append(finished([0, 1], failing=[0, 1]))
    assert store.summary().width is None
    _, x = split_columns(store.read())
    assert x.shape == (2, 0)


def test_more_rows_than_a_row_group_holds(tmp_path: Path) -> None:
    n = GROUP_ROWS + 3
    proposals = Proposals.of_kind(5, np.arange(2.0 * n).reshape(n, 2), ProposalKind.PRIOR, 0)
    outcomes = Outcomes(
        np.zeros(n, dtype=np.uint8), np.ones(n, dtype=np.int64), np.arange(float(n)), np.full(n, 1e9), np.ones(n), {}
    )
    store = SimulationStore(tmp_path)
    store.append(Finished(proposals, outcomes, np.ones(n, dtype=np.int64), np.full(n, "h:1", dtype=object)))
    assert pq.ParquetFile(next(tmp_path.glob("*.parquet"))).num_row_groups == 2
    theta, x = split_columns(store.read())
    np.testing.assert_array_equal(theta, proposals.theta)
    np.testing.assert_array_equal(x[:, 0], outcomes.values)


def test_a_reason_that_is_no_text_is_kept_as_far_as_it_is(tmp_path: Path) -> None:
    failure = Outcomes.failed(1, Status.RAISED, "bytes \udcff\udcfe of a program", 1e9, 0.1)
    row = finished([0])
    store = SimulationStore(tmp_path)
    store.append(Finished(row.proposals, failure, row.attempts, row.worker))
    assert store.read(["reason"])["reason"].to_pylist() == ["bytes ?? of a program"]


def test_a_store_that_cannot_be_used_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirectoryError, match=r"cannot be written: .*file"):
        SimulationStore(tmp_path / "file" / "store").append(finished([0]))
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        len(SimulationStore(tmp_path / "file"))


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("s3://AKIAKEY:hunter2@bucket/prefix", r"must not hold credentials.*write s3://bucket/prefix"),
        ("sftp://me:hunter2@host/folder", "must not hold credentials"),
        ("s3://bucket/prefix?endpoint_override=hunter2", "without options"),
        ("s4://bucket", "no store of the kind 's4://'"),
    ],
)
def test_a_uri_that_cannot_be_used_is_refused_without_repeating_secrets(uri: str, message: str) -> None:
    with pytest.raises(RunDirectoryError, match=message) as caught:
        SimulationStore(uri)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_other_locations(tmp_path: Path, kind: str) -> None:
    store = SimulationStore(f"{kind}://{tmp_path}/store")
    for i in range(5):
        store.append(finished([2 * i, 2 * i + 1]))
    assert store.read()["x"].to_pylist()[3] == [3.0, 6.0]
    before = store.digest()
    assert store.compact() == 5
    assert (store.digest(), len(store), store.small_files()) == (before, 10, 1)
    assert SimulationStore(f"{kind}://{tmp_path}/store").summary().highest_id == 9
    assert (tmp_path / "store").exists() == (kind == "file")


def test_a_store_belongs_to_one_campaign(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    store.claim("one", "/runs/one")
    store.claim("two", "/runs/two")  # Nothing is lost as long as it is empty.
    store.append(finished([0]))
    store.claim("two", "/runs/two")
    with pytest.raises(RunDirectoryError, match=r"belongs to the campaign in /runs/two.*another store"):
        store.claim("one", "/runs/one")
    assert json.loads((tmp_path / "_campaign.json").read_text())["owner"] == "two"
    assert ds.dataset(tmp_path).count_rows() == 1


@pytest.mark.parametrize("place", ["../elsewhere", "absolute"])
def test_a_campaign_may_keep_it_elsewhere(tmp_path: Path, place: str) -> None:
    place = place if place.startswith(".") else str(tmp_path / "elsewhere")
    run = RunDirectory(tmp_path / "run")
    run.open({"store": place}, {"store": place})
    run.store().append(finished([0]))
    run.close()
    assert ds.dataset(tmp_path / "elsewhere").count_rows() == 1
    assert not run.simulations.exists()


def test_a_folders_uri_may_hold_escaped_characters(tmp_path: Path) -> None:
    store = SimulationStore((tmp_path / "my runs").as_uri())
    store.append(finished([0]))
    assert ds.dataset(tmp_path / "my runs").count_rows() == 1


def test_seeds_differ_between_rows_and_campaigns() -> None:
    seeds = {int(seed) for c in range(10) for seed in row_seeds(c, np.arange(100))}
    assert len(seeds) == 1000
    assert row_seeds(1, np.array([2])) == row_seeds(1, np.arange(3))[2]
