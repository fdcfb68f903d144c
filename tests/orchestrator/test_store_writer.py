"""The writer: rows become durable in order, whatever happens to the disk meanwhile."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from disks import fill, mounted
from rows import finished
from waiting import wait_until

from orchestrator import store_writer
from orchestrator.proposal import Finished
from orchestrator.store import SimulationStore
from orchestrator.store_writer import StoreWriter
from simulators.errors import RunDirectoryError

HERE = Path(__file__).parent


def ids(parts: list[Finished]) -> list[int]:
    return [i for part in parts for i in part.proposals.id.tolist()]


class Gate(SimulationStore):
    """A store that lets writes through one at a time, and notes what each held."""

    def __init__(self, location: Path) -> None:
        super().__init__(location)
        self.entered, self.open = threading.Semaphore(0), threading.Semaphore(0)
        self.batches: list[list[int]] = []

    def append(self, rows: Finished) -> None:
        self.entered.release()
        assert self.open.acquire(timeout=60)
        super().append(rows)
        self.batches.append(rows.proposals.id.tolist())


def test_rows_are_durable_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    writer = StoreWriter(store)
    for i in range(50):
        writer.put(finished([100 - i]))
    writer.put(Finished.none())
    assert writer.flush(60)
    assert writer.waiting == 0
    assert len(store) == 50
    assert ids(writer.committed()) == [100 - i for i in range(50)]
    assert writer.committed() == []
    writer.close()
    writer.close()


def test_one_write_takes_all_that_has_come_meanwhile(tmp_path: Path) -> None:
    store = Gate(tmp_path)
    writer = StoreWriter(store)
    writer.put(finished([0]))
    assert store.entered.acquire(timeout=60)
    for i in range(1, 30):
        writer.put(finished([i]))
    assert writer.committed() == []
    assert writer.waiting == 30
    assert ids(writer.unwritten) == list(range(30))
    assert not writer.flush(0.01)
    store.open.release(10)
    assert writer.flush(60)
    writer.close()
    assert store.batches == [[0], list(range(1, 30))]
    assert not writer.unwritten


def test_rows_that_trickle_need_no_flush(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    writer = StoreWriter(store)
    for i in range(3):
        writer.put(finished([i]))
        wait_until(lambda: not writer.waiting)
    assert len(store) == 3
    writer.close()


def test_closing_tidies_up(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    for i in range(20):
        store.append(finished([i]))
    writer = StoreWriter(store)
    writer.put(finished([20]))
    writer.close()
    assert store.small_files() == 1
    assert len(store) == 21


def test_many_files_are_merged_on_the_way(tmp_path: Path) -> None:
    store = SimulationStore(tmp_path)
    for i in range(201):
        store.append(finished([i]))
    writer = StoreWriter(store)
    wait_until(lambda: store.small_files() == 1)
    writer.put(finished([500]))
    writer.close()
    assert len(store) == 202


def test_in_the_end_rows_that_wait_come_before_a_merge(tmp_path: Path) -> None:
    class Noting(Gate):
        merges: list[int]

        def compact(self) -> int:
            self.merges.append(len(self.batches))
            return super().compact()

    for i in range(200):
        SimulationStore(tmp_path).append(finished([i]))
    store = Noting(tmp_path)
    store.merges = []
    writer = StoreWriter(store)
    writer.put(finished([500]))
    assert store.entered.acquire(timeout=60)
    writer.put(finished([501]))
    with ThreadPoolExecutor(1) as thread:
        closing = thread.submit(writer.close)
        wait_until(lambda: writer._closing)
        store.open.release(2)
        closing.result(60)
    assert store.batches == [[500], [501]]
    assert store.merges == [2]
    assert store.small_files() == 1
    assert len(store) == 202


def test_a_merge_that_takes_long_loses_no_patience(tmp_path: Path) -> None:
    patience = 2.0
    merging, given_up = threading.Event(), threading.Event()

    class Slow(SimulationStore):
        def compact(self) -> int:
            merging.set()
            given_up.wait(2 * patience)
            return super().compact()

    store = Slow(tmp_path)
    for i in range(201):
        store.append(finished([i]))
    writer = StoreWriter(store)
    assert merging.wait(60)
    writer.put(finished([500]))
    try:
        writer.close(patience)
    finally:
        given_up.set()
    assert len(store) == 202


def test_a_merge_that_fails_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SimulationStore(tmp_path)
    for i in range(20):
        store.append(finished([i]))
    (tmp_path / "000000000999-damaged.parquet").write_bytes(b"garbage")
    writer = StoreWriter(store)
    writer.put(finished([500]))
    writer.close()
    assert "could not be merged" in caplog.text
    (tmp_path / "000000000999-damaged.parquet").unlink()
    assert len(store) == 21


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "1m") as folder:
        yield folder


def test_a_full_disk_delays_rows_and_loses_none(small_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = SimulationStore(small_disk / "store")
    writer = StoreWriter(store)
    writer.put(finished([0, 1]))
    assert writer.flush(60)
    ballast = fill(small_disk)
    writer.put(finished([2, 3]))
    wait_until(lambda: writer.problem is not None)
    assert "No space left" in str(writer.problem)
    assert "free some space" in str(writer.problem)
    assert "2 simulations wait to be stored" in caplog.text
    writer.put(finished([4]))
    assert writer.waiting == 3
    assert ids(writer.committed()) == [0, 1]
    assert store.ids().tolist() == [0, 1]
    assert list((small_disk / "store").glob(".*")) == []
    ballast.unlink()
    assert writer.flush(60)
    assert writer.problem is None
    assert ids(writer.committed()) == [2, 3, 4]
    writer.put(finished([5]))
    writer.close()
    assert store.ids().tolist() == [0, 1, 2, 3, 4, 5]
    assert store.read(["worker"]).num_rows == 6


def test_what_cannot_be_written_at_the_end_is_an_error_that_counts_it(small_disk: Path) -> None:
    store = SimulationStore(small_disk / "store")
    writer = StoreWriter(store)
    ballast = fill(small_disk)
    writer.put(finished([0, 1, 2]))
    with pytest.raises(RunDirectoryError, match=r"3 simulations could not be stored: .*No space left.*run the same"):
        writer.close(patience=0.1)
    ballast.unlink()
    assert len(store) == 0


def test_a_limit_on_the_size_of_files_is_survived(tmp_path: Path) -> None:
    """In a process of its own: the limit is a process's."""
    script = (
        "import resource, sys, time\nsys.path.insert(0, sys.argv[2])\n"
        "from rows import finished\nfrom orchestrator.store import SimulationStore\n"
        "from orchestrator.store_writer import StoreWriter\n"
        "store = SimulationStore(sys.argv[1])\nwriter = StoreWriter(store)\n"
        "_, most = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, most))\n"
        "writer.put(finished([0, 1]))\n"
        "while writer.problem is None: time.sleep(0.01)\n"
        "assert len(store) == 0\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))\n"
        "assert writer.flush(60)\nwriter.close()\nassert store.ids().tolist() == [0, 1]\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(HERE)]
    subprocess.run(command, check=True, cwd=HERE.parents[1], timeout=60)


def test_whatever_goes_wrong_the_rows_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_writer, "_RETRY_SECONDS", 0.01)

    class Fragile(SimulationStore):
        failures = 3

        def append(self, rows: Finished) -> None:
            super().append(rows)
            if self.failures:
                self.failures -= 1
                raise MemoryError("after the file was there")

    store = Fragile(tmp_path)
    writer = StoreWriter(store)
    writer.put(finished([0, 1]))
    assert writer.flush(60)
    writer.put(finished([2]))
    writer.close()
    assert ids(writer.committed()) == [0, 1, 2]
    assert len(list(tmp_path.glob("*.parquet"))) == 2


def test_a_killed_writer_leaves_whole_rows(tmp_path: Path) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from rows import finished\nfrom orchestrator.store import SimulationStore\n"
        "from orchestrator.store_writer import StoreWriter\n"
        "writer = StoreWriter(SimulationStore(sys.argv[1]))\n"
        "i = 0\n"
        "while True:\n"
        "    writer.put(finished([i])); i += 1\n"
        "    for part in writer.committed(): print(part.proposals.id[0], flush=True)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path), str(HERE)]
    writer = subprocess.Popen(command, cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    told = [int(writer.stdout.readline()) for _ in range(300)]
    writer.kill()
    told += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
    writer.wait()
    stored = SimulationStore(tmp_path).ids().tolist()
    assert stored == list(range(len(stored)))
    assert len(stored) > max(told)
