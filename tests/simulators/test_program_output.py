"""What programs write: numbers of every spelling are read, anything else is refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from simulators.errors import ConfigError
from simulators.outcome import Status, flatten_output
from simulators.program_output import MAX_BYTES, OutputError, output_format, read_output

TABLES: dict[str, tuple[str, list[float]]] = {
    "one number": ("1.5", [1.5]),
    "a line": ("1 2.5 -3e-2\n", [1, 2.5, -0.03]),
    "a column": ("1\n2\n\n3\n", [1, 2, 3]),
    "column after column": ("1,2\n3,4\n5,6\n", [1, 3, 5, 2, 4, 6]),
    "header": ("hare,lynx\n1,2\n3,4\n", [1, 3, 2, 4]),
    "quoted header": ('"hare, 1000s";"lynx"\n1;2\n3;4\n', [1, 3, 2, 4]),
    "header of white space": ("  hare   lynx\n  1.0   2.0\n", [1, 2]),
    "unnamed index": (",a\n0,1.5\n1,2.5\n", [0, 1, 1.5, 2.5]),
    "labels": ("site,a,unit\nnorth,1,m\nsouth,2,m\n", [1, 2]),
    "separators in the header": ("t; s,a,b\n0,1,2\n", [0, 1, 2]),
    "comments": ("# t a\n1 2\n  # a note\n3 4\n", [1, 3, 2, 4]),
    "trailing commas": ("1,2,\n3,4,\n", [1, 3, 2, 4]),
    "Windows": ("a,b\r\n1,2\r\n", [1, 2]),
    "byte order mark": ("\ufeff1,2\n3,4\n", [1, 3, 2, 4]),
}


@pytest.mark.parametrize(("text", "expected"), TABLES.values(), ids=TABLES)
def test_a_table_is_its_columns_of_numbers(text: str, expected: list[float], tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(text.encode())
    assert read_output(tmp_path / "x.csv", "csv") == expected
    assert read_output(bytearray(text.encode()), "csv") == expected


def test_columns_are_chosen_by_their_names() -> None:
    table = b"a,b,c\n1,2,north\n3,4,south\n"
    for text in (table, b"\xef\xbb\xbf" + table):
        assert read_output(bytearray(text), "csv", ["b", "a"]) == [2, 4, 1, 3]


@pytest.mark.parametrize("cell", ["nan", "", "inf"])
def test_a_missing_value_is_not_finite(cell: str) -> None:
    status, _, reason = flatten_output(read_output(bytearray(f"a,b\n1,2\n{cell},4\n".encode()), "csv"))
    assert status is Status.NOT_FINITE
    assert reason.startswith("1 of 4 values")


@pytest.mark.parametrize(
    ("text", "fields", "reason"),
    [
        (b"", [], "standard output: empty"),
        (b"\n# nothing\n", [], "empty"),
        (b"Segmentation fault", [], "no column of numbers, it begins with 'Segmentation fault'"),
        (b"a,b\n", [], "no column of numbers"),
        (b"a,b\n", ["a"], "no column of numbers"),
        (b"1 2\n3\n", [], "row 2 has 1 values, but the first has 2"),
        (b"a b\n1 2\n3 ****\n", [], "column 'b' has '****' where a number is expected"),
        (b"1,2\n1.5D+00,3\n", [], "column '1' has '1.5D+00'"),
        (b"1;2\n", ["a"], "expected a header with a, got '1;2'"),
        (b"1,5;2,5\n", [], "no column of numbers, it begins with '1,5;2,5'"),
        (b"1,5 2,5\n", [], "column '2' has '5 2'"),
        (b"step 1\nstep 2\n", [], "column '1' has 'step'"),
        (b"hare,lynx\n1,2\n", ["hares"], "no column 'hares'; did you mean 'hare'"),
        (b"site,a\nnorth,1\n", ["site"], "column 'site' has 'north'"),
        (b"\xff\xfe1", [], "cannot be read as csv: UnicodeDecodeError"),
        (b'a,"' + b"x" * 200_000, [], "cannot be read as csv: Error"),
    ],
)
def test_a_table_of_something_else_is_refused(text: bytes, fields: list[str], reason: str) -> None:
    with pytest.raises(OutputError) as error:
        read_output(bytearray(text), "csv", fields)
    assert reason in str(error.value)


@pytest.mark.parametrize(
    ("text", "fields", "expected"),
    [
        ("1.5", [], [1.5]),
        ("[[1, 2], [3, 4]]", [], [1, 2, 3, 4]),
        ('{"b": 1, "a": [2, 3]}', [], [1, 2, 3]),
        ('{"b": 1, "note": "fine", "a": [2, 3]}', ["a", "b"], [2, 3, 1]),
    ],
)
def test_json_keeps_its_order(text: str, fields: list[str], expected: list[float], tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    status, x, reason = flatten_output(read_output(tmp_path / "x.json", "json", fields))
    assert (status, reason) == (Status.OK, "")
    assert x is not None
    assert x.tolist() == expected


@pytest.mark.parametrize(
    ("text", "fields", "reason"),
    [
        ('{"a": 1}', ["b"], "x.json: no key 'b'; valid are: a"),
        ("{}", ["b"], "no key 'b'; there is none"),
        ("[1]", ["b"], "expected an object with b, got list"),
        ("1 2", [], "JSONDecodeError: Extra data"),
        ("[" * 100_000, [], "RecursionError"),
    ],
)
def test_other_json_is_refused(text: str, fields: list[str], reason: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(OutputError) as error:
        read_output(tmp_path / "x.json", "json", fields)
    assert reason in str(error.value)


def _objects(path: Path) -> None:
    np.save(path, np.array([print, None], dtype=object), allow_pickle=True)


def _archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, a=np.zeros(3))


def _cut(path: Path) -> None:
    np.save(path, np.zeros(1000))
    path.write_bytes(path.read_bytes()[:-100])


def _boast(path: Path) -> None:
    """A header that announces far more than there is."""
    np.save(path, np.zeros(100_000))
    path.write_bytes(path.read_bytes().replace(b"(100000,), }    ", b"(9999999999,), }"))


@pytest.mark.parametrize("write", [_objects, _archive, _cut, _boast, lambda path: path.write_bytes(b"\x93NUMPY")])
def test_what_is_no_numpy_array_is_refused(write: Callable[[Path], Any], tmp_path: Path) -> None:
    write(tmp_path / "x.npy")
    with pytest.raises(OutputError, match=r"x\.npy cannot be read as npy"):
        read_output(tmp_path / "x.npy", "npy")


def test_hdf5_is_measured_before_it_is_read(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("field", shape=(1 << 40,), dtype="f8", chunks=(1024,))
        file["summary"] = [1.0, 2.0]
    with pytest.raises(OutputError, match="datasets of more than 16 MiB"):
        read_output(tmp_path / "x.h5", "hdf5")
    assert flatten_output(read_output(tmp_path / "x.h5", "hdf5", ["summary"]))[0] is Status.OK
    (tmp_path / "x.h5").write_bytes(b"garbage" * 1000)
    with pytest.raises(OutputError, match=r"x\.h5 cannot be read as hdf5: OSError"):
        read_output(tmp_path / "x.h5", "hdf5")


def test_a_large_file_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "x.csv").open("w") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(OutputError, match=r"x\.csv has more than 16 MiB"):
        read_output(tmp_path / "x.csv", "csv")


def test_the_format_follows_from_the_name() -> None:
    assert output_format("stdout") == ("csv", None)
    assert output_format("hdf5") == ("hdf5", "output.h5")
    assert output_format("results/Final.DAT") == ("csv", "results/Final.DAT")
    with pytest.raises(ConfigError, match=r"got 'x\.mat'"):
        output_format("x.mat")
