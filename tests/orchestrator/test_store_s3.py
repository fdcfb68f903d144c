"""The store in a bucket of an S3-compatible server, over HTTP."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pyarrow.fs
import pytest
from object_store import ObjectStore
from rows import finished
from waiting import wait_until

from orchestrator.location import open_location
from orchestrator.run_directory import RunDirectory
from orchestrator.store import SimulationStore
from orchestrator.store_writer import StoreWriter
from simulators.errors import RunDirectoryError

HERE = Path(__file__).parent
KEY, SECRET = "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    server = ObjectStore()
    server.send("PUT", "bucket")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", KEY)
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_ENDPOINT_URL", server.url)
        yield server
    server.stop()


@pytest.fixture
def uri(server: ObjectStore, request: pytest.FixtureRequest) -> Iterator[str]:
    yield f"s3://bucket/{request.node.name}/simulations"
    server.refuses = lambda _: False


def files(uri: str) -> list[str]:
    return sorted(open_location(uri).files())


def test_rows_are_appended_read_and_merged(server: ObjectStore, uri: str) -> None:
    store = SimulationStore(uri)
    assert len(store) == 0
    server.requests.clear()
    store.append(finished([3, 1], failing=[1]))
    assert [method for method, _ in server.requests] == ["PUT"]
    for i in range(10, 20):
        store.append(finished([i]))
    before = store.read()
    assert before["id"].to_pylist() == [1, 3, *range(10, 20)]
    assert before["x"].to_pylist()[:2] == [None, [3.0, 6.0]]
    summary = store.summary()
    assert (summary.rows, summary.highest_id, summary.width) == (12, 19, 2)
    assert store.compact() == 11
    assert SimulationStore(uri).read().equals(before)
    assert [name.startswith("000000000001-merged") for name in files(uri)] == [True, False]
    host = server.url.removeprefix("http://")
    plain = pyarrow.fs.S3FileSystem(endpoint_override=host, scheme="http")
    assert ds.dataset(uri.removeprefix("s3://"), filesystem=plain).count_rows() == 12


def test_a_large_file_that_is_cut_off_is_never_seen(server: ObjectStore, uri: str) -> None:
    """It goes over in parts; when one is refused, those before must not become a shorter file."""
    location = open_location(uri)
    content = np.random.default_rng(0).bytes(30 << 20)
    server.refuses = lambda environment: "partNumber=2" in environment["QUERY_STRING"]
    with pytest.raises(RunDirectoryError, match="cannot be written"):
        location.put("large.parquet", lambda file: file.write(content))
    assert files(uri) == []
    server.refuses = lambda _: False
    location.put("large.parquet", lambda file: file.write(content))
    assert location.files() == {"large.parquet": len(content)}
    assert location.read("large.parquet") == content


def test_a_merge_that_is_refused_loses_nothing(server: ObjectStore, uri: str) -> None:
    store = SimulationStore(uri)
    for i in range(5):
        store.append(finished([i]))
    for refused in (("PUT", "-merged-"), ("DELETE", "000000000003-"), ("PUT", "_manifest.json")):
        server.refuses = lambda env, r=refused: env["REQUEST_METHOD"] == r[0] and r[1] in env["PATH_INFO"]
        with pytest.raises(RunDirectoryError, match="AWS_ACCESS_KEY_ID"):
            store.compact()
        assert store.ids().tolist() == [0, 1, 2, 3, 4]
    server.refuses = lambda _: False
    store.compact()
    assert store.ids().tolist() == [0, 1, 2, 3, 4]
    assert len(files(uri)) == 2


def test_rows_wait_while_the_server_is_out(server: ObjectStore, uri: str) -> None:
    store = SimulationStore(uri)
    writer = StoreWriter(store)
    writer.put(finished([0]))
    assert writer.flush(60)
    server.stop()
    try:
        writer.put(finished([1]))
        wait_until(lambda: writer.problem is not None)
        assert "check the network" in str(writer.problem)
        assert writer.waiting == 1
    finally:
        server.start()
    assert writer.flush(60)
    assert writer.problem is None
    writer.close()
    assert store.ids().tolist() == [0, 1]


def test_a_killed_writer_is_followed_by_another(server: ObjectStore, uri: str) -> None:
    script = (
        "import sys; sys.path.insert(0, sys.argv[2])\n"
        "from rows import finished\nfrom orchestrator.store import SimulationStore\n"
        "store = SimulationStore(sys.argv[1])\n"
        "i = 0\n"
        "while True:\n"
        "    store.append(finished([2 * i, 2 * i + 1])); i += 1\n"
        "    if i % 4 == 0: store.compact()\n"
        "    print(2 * i, flush=True)\n"
    )
    command = [sys.executable, "-c", script, uri, str(HERE)]
    for lines in (5, 9):
        first = subprocess.Popen(command, cwd=HERE.parents[1], stdout=subprocess.PIPE, text=True)
        assert first.stdout is not None
        told = [int(first.stdout.readline()) for _ in range(lines)][-1]
        first.kill()
        first.wait()
        first.stdout.close()
        store = SimulationStore(uri)
        stored = store.ids().tolist()
        assert stored == list(range(len(stored)))
        assert len(stored) >= told
    store.append(finished([1000]))
    store.compact()
    assert store.ids().tolist() == [*stored, 1000]
    assert store.small_files() == 1


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        ({}, "s3://no-such-bucket/prefix", "create the bucket"),
        ({"AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}, "s3://bucket/prefix", "check the network"),
    ],
)
def test_a_store_out_of_reach_is_explained(
    server: ObjectStore, monkeypatch: pytest.MonkeyPatch, change: dict[str, str], where: str, message: str
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    store = SimulationStore(where)
    for use in (store.read, lambda: store.append(finished([0])), store.compact):
        with pytest.raises(RunDirectoryError, match=message):
            use()


def test_wrong_credentials_are_explained_and_not_repeated(
    server: ObjectStore, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.send("POST", "moto-api/reset-auth", b"0")
    try:
        for use in (lambda: len(SimulationStore(uri)), lambda: SimulationStore(uri).append(finished([0]))):
            with pytest.raises(RunDirectoryError, match="check AWS_ACCESS_KEY_ID") as caught:
                use()
            assert KEY not in str(caught.value)
            assert SECRET not in str(caught.value)
    finally:
        server.send("POST", "moto-api/reset-auth", b"inf")


def test_a_run_directory_keeps_its_store_there(server: ObjectStore, uri: str, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.open({"store": uri}, {"store": uri})
    run.store().append(finished([0, 1]))
    run.close()
    again = RunDirectory(tmp_path / "run")
    again.open({"store": uri}, {"store": uri})
    again.close()
    assert len(again.store()) == 2
    other = RunDirectory(tmp_path / "other")
    with pytest.raises(RunDirectoryError, match=r"belongs to the campaign in .*/run;"):
        other.open({"store": uri}, {"store": uri})
    other.open({}, {"store": None})
    with pytest.raises(RunDirectoryError, match="store changed"):
        again.open({}, {"store": None})
    assert not (tmp_path / "run" / "simulations").exists()
