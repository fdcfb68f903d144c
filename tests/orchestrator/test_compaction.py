"""Compaction: few files instead of many, and no moment at which a row is lost or shown twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from rows import finished

from orchestrator.compaction import plan
from orchestrator.manifest import Manifest, Merging
from orchestrator.store import SCHEMA, SimulationStore
from simulators.errors import RunDirectoryError

HERE = Path(__file__).parent
MB = 1 << 20


def store_of(folder: Path, files: int = 6) -> SimulationStore:
    store = SimulationStore(folder)
    for i in range(files):
        store.append(finished([files - i, 100 - i], failing=[97]))
    return store


def manifest_of(folder: Path) -> Manifest:
    return Manifest.model_validate_json((folder / "_manifest.json").read_text())


def test_small_files_become_one_that_the_manifest_describes(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    before = store.read()
    assert store.small_files() == 6
    assert store.compact() == 6
    [file] = tmp_path.glob("*.parquet")
    [merged] = manifest_of(tmp_path).merged
    assert (merged.name, merged.bytes) == (file.name, file.stat().st_size)
    assert (merged.rows, merged.first_id, merged.last_id) == (12, 1, 100)
    assert store.read().equals(before)
    assert store.compact() == 0


def test_appending_and_compacting_go_on(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    store.compact()
    for i in range(200, 210):
        store.append(finished([i]))
    assert store.compact() == 11
    assert store.ids().tolist() == [*range(1, 7), *range(95, 101), *range(200, 210)]
    assert ds.dataset(tmp_path).count_rows() == 22
    assert [file.rows for file in manifest_of(tmp_path).merged] == [22]


def test_files_of_earlier_versions_are_merged_too(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    before = store.read()
    for file in tmp_path.glob("*.parquet"):
        # They told Arrow's own schema, and had plain strings.
        pq.write_table(pq.ParquetFile(file).read().cast(SCHEMA), file)
    assert store.read().equals(before)
    store.compact()
    assert store.read().equals(before)


def test_what_is_merged_is_not_merged_again_and_again() -> None:
    assert plan({"a": 40 * MB, "b": 1000, "c": 1000}) == [["b", "c"]]
    assert plan({"a": 70 * MB, "b": 12 * MB, "c": 12 * MB}) == [["b", "c"]]
    assert plan({"a": 12 * MB, "b": 13 * MB}) == []
    assert plan({"a": 1}) == []
    many = plan({f"{i:03d}": 12 * MB for i in range(24)})
    assert [len(group) for group in many] == [10, 10, 4]
    # A store that grows by a file of 100 kB at a time, merged after each 200.
    sizes: dict[str, int] = {}
    rewritten = written = 0
    for i in range(20_000):
        sizes[f"{i}"] = 100_000
        written += 100_000
        if i % 200 == 0:
            for group in plan(sizes):
                size = sum(sizes.pop(name) for name in group)
                rewritten += size
                sizes[f"{i}-{size}"] = size
    assert rewritten < 5 * written
    assert len(sizes) < 250


@pytest.mark.parametrize("work", ["append", "compact"])
def test_a_kill_at_any_step_loses_no_row_and_shows_none_twice(tmp_path: Path, work: str) -> None:
    original = tmp_path / "original"
    store = store_of(original, files=2)
    store.compact()
    for i in range(200, 202):
        store.append(finished([i]))
    rows = set(store.ids().tolist())
    copies = tmp_path / "copies"
    command = [sys.executable, str(HERE / "kill_at_each_step.py"), work, str(original), str(copies)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=HERE.parents[1], timeout=120)
    count = int(done.stdout)
    assert count > 10
    written = 0
    for n in range(count):
        copy = copies / str(n)
        left = SimulationStore(copy)
        expected = rows | set(range(100, 105)) if work == "append" and 104 in left.ids() else rows
        written += expected != rows
        assert len(left) == left.summary().rows == len(expected), n
        if work == "compact":
            assert left.digest() == store.digest(), n
        left.append(finished([300]))
        left.compact()
        assert left.ids().tolist() == sorted(expected | {300}), n
        assert ds.dataset(copy).count_rows() == len(expected) + 1, n
        assert manifest_of(copy).merging is None
        assert list(copy.glob(".*")) == [], n
    if work == "append":
        assert 0 < written < count


def test_readers_see_every_row_once_while_another_process_writes_and_merges(tmp_path: Path) -> None:
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[2])\n"
        "from rows import finished\nfrom orchestrator.store import SimulationStore\n"
        "store = SimulationStore(sys.argv[1])\n"
        "i = 0\n"
        "while not os.path.exists(sys.argv[3]):\n"
        "    store.append(finished(range(4 * i, 4 * i + 4)))\n"
        "    if i % 3 == 0: store.compact()\n"
        "    i += 1\n"
        "print(i)\n"
    )
    folder, stop = tmp_path / "store", tmp_path / "stop"
    command = [sys.executable, "-c", script, str(folder), str(HERE), str(stop)]
    writer = subprocess.Popen(command, cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True)
    store = SimulationStore(folder)
    seen = changes = 0
    try:
        while changes < 60:
            assert writer.poll() is None
            ids = store.read(["x"])["id"].to_numpy()
            np.testing.assert_array_equal(ids, np.arange(len(ids)))
            assert len(ids) >= seen
            assert len(ids) % 4 == 0
            changes += len(ids) > seen
            seen = len(ids)
    finally:
        stop.touch()
        told, _ = writer.communicate()
    assert len(store) == 4 * int(told)


def test_a_file_that_is_missing_is_named(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    store.compact()
    [file] = tmp_path.glob("*.parquet")
    file.unlink()
    for use in (store.read, store.compact):
        with pytest.raises(
            RunDirectoryError, match=rf"lacks a file: {file.name}.*put it back, or delete _manifest.json"
        ):
            use()
    (tmp_path / "_manifest.json").unlink()
    assert len(store) == 0


@pytest.mark.parametrize("content", ["{", json.dumps({"format": 2}), json.dumps({"format": 1, "more": 1})])
def test_a_manifest_that_cannot_be_read_is_explained(tmp_path: Path, content: str) -> None:
    store = store_of(tmp_path)
    (tmp_path / "_manifest.json").write_text(content)
    for use in (store.read, store.compact):
        with pytest.raises(RunDirectoryError, match="upgrade"):
            use()


def test_without_a_manifest_no_row_is_lost(tmp_path: Path) -> None:
    """Even in the middle of a merge: what is there twice is read once."""
    store = store_of(tmp_path / "a")
    names = tuple(file.name for file in (tmp_path / "a").glob("*.parquet"))
    other = store_of(tmp_path / "b")
    other.compact()
    [merged] = (tmp_path / "b").glob("*.parquet")
    (tmp_path / "a" / merged.name).write_bytes(merged.read_bytes())
    assert len(store) == 12
    pending = Manifest(merging=Merging(into=merged.name, files=names))
    (tmp_path / "a" / "_manifest.json").write_text(pending.model_dump_json())
    assert len(store) == 12
    store.compact()
    assert ds.dataset(tmp_path / "a").count_rows() == len(store) == 12


def test_a_damaged_file_is_not_merged_away(tmp_path: Path) -> None:
    store = store_of(tmp_path)
    damaged = tmp_path / "000000000001-damaged.parquet"
    damaged.write_bytes(b"garbage")
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        store.compact()
    assert len(list(tmp_path.glob("*.parquet"))) == 7
    damaged.unlink()
    assert len(store) == 12
    assert store.compact() == 6
