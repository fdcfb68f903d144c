"""Reading what an external program wrote: JSON, tables of numbers, NumPy and HDF5 files; garbage is refused."""

from __future__ import annotations

__all__ = ["FORMATS", "MAX_BYTES", "OutputError", "output_format", "read_output"]

import csv
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from .errors import ConfigError, nearest

#: A result of more bytes is refused: 2 million numbers are no vector that anyone infers parameters from.
MAX_BYTES = 1 << 24

#: Format of an output file by its suffix.
_SUFFIXES = {
    ".json": "json",
    ".csv": "csv",
    ".txt": "csv",
    ".dat": "csv",
    ".npy": "npy",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
}


class OutputError(ValueError):
    """What a program wrote is not what it should write."""


def output_format(output: str) -> tuple[str, str | None]:
    """Format of `output`, and the name of the file, None for what is printed.

    Arguments:
        output: `stdout`, one of `FORMATS`, or the name of the file that the program writes.

    Raises:
        ConfigError: None of these, or a file outside of the run's folder.
    """
    if output == "stdout":
        return "csv", None
    if output in FORMATS:
        return output, "output.h5" if output == "hdf5" else f"output.{output}"
    path = PurePosixPath(output)
    if path.suffix.lower() not in _SUFFIXES:
        raise ConfigError(
            f"output: expected stdout, {', '.join(FORMATS)}, or the name of a file that ends in "
            f"{', '.join(_SUFFIXES)}, got '{output}'"
        )
    if path.is_absolute() or ".." in path.parts:
        raise ConfigError(
            f"output: expected a file in the run's own folder, got '{output}'; runs beside each other must not share it"
        )
    return _SUFFIXES[path.suffix.lower()], output


def read_output(source: Path | bytearray, form: str, fields: Sequence[str] = ()) -> Any:
    """The numbers in a file, or in a text (`csv` only), as a simulator would return them.

    Arguments:
        source: The file, or what was printed.
        form: One of `FORMATS`.
        fields: Keys, columns or datasets that are wanted, in this order; empty takes all.

    Raises:
        OutputError: It is missing, too large, or holds something else.
    """
    if isinstance(source, bytearray):
        name = "standard output"
    else:
        name = source.name
        if not source.is_file():
            raise OutputError(f"the program wrote no file {name}")
        # HDF5 is read in parts: there the datasets are measured, not the file.
        if form != "hdf5" and source.stat().st_size > MAX_BYTES:
            raise OutputError(f"{name} has more than {MAX_BYTES >> 20} MiB; write only the numbers that x is made of")
    try:
        return FORMATS[form](source, fields)
    except OutputError as error:
        raise OutputError(f"{name}: {error}") from error
    except Exception as error:  # Whatever a parser makes of garbage.
        raise OutputError(f"{name} cannot be read as {form}: {type(error).__name__}: {error}") from error


def _read_json(source: Path | bytearray, fields: Sequence[str]) -> Any:
    values = json.loads(_text(source))
    if not fields:
        return values
    if not isinstance(values, dict):
        raise OutputError(f"expected an object with {', '.join(fields)}, got {type(values).__name__}")
    return {str(i): _pick(values, field, "key") for i, field in enumerate(fields)}


def _read_table(source: Path | bytearray, fields: Sequence[str]) -> list[float]:
    """Column after column of a table whose cells are separated by semicolons, commas or white space.

    A first line without numbers is a header; under one, columns of labels are left out, as are lines that start
    with `#` and columns without any content.
    """
    lines = [line for line in _text(source).splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise OutputError("empty")
    separator = next((s for s in ";," if s in lines[-1]), None)  # A header's names may hold any.
    rows = [line.split() for line in lines] if separator is None else list(csv.reader(lines, delimiter=separator))
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise OutputError(f"row {number} has {len(row)} values, but the first has {width}")
    header = None if any(map(_is_number, rows[0])) else [cell.strip() for cell in rows.pop(0)]
    names = header or [str(i) for i in range(1, width + 1)]
    columns = list(zip(*rows, strict=True))
    if fields and header is None:
        raise OutputError(f"expected a header with {', '.join(fields)}, got '{lines[0][:80]}'")
    has_content = any if header is None else _has_numbers
    wanted = [i for i, column in enumerate(columns) if has_content(column)]
    if not wanted:
        raise OutputError(f"no column of numbers, it begins with '{lines[0][:80]}'")
    if fields:
        wanted = [_pick({name: i for i, name in enumerate(names)}, field, "column") for field in fields]
    return [_number(cell, names[i]) for i in wanted for cell in columns[i]]


def _read_npy(source: Path | bytearray, fields: Sequence[str]) -> Any:
    assert isinstance(source, Path)
    with source.open("rb") as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_hdf5(source: Path | bytearray, fields: Sequence[str]) -> Any:
    import h5py

    assert isinstance(source, Path)
    with h5py.File(source, "r") as file:
        datasets: dict[str, Any] = {}
        file.visititems(lambda name, item: datasets.update({name: item} if isinstance(item, h5py.Dataset) else {}))
        if fields:
            chosen = [_pick(datasets, field.strip("/"), "dataset") for field in fields]
        else:
            chosen = [dataset for dataset in datasets.values() if dataset.dtype.kind in "fiub"]
        if sum(dataset.nbytes for dataset in chosen) > MAX_BYTES:
            raise OutputError(f"datasets of more than {MAX_BYTES >> 20} MiB; name those that x is made of in `fields`")
        return {str(i): dataset[()] for i, dataset in enumerate(chosen)}


#: Format to its reader.
FORMATS: dict[str, Callable[[Path | bytearray, Sequence[str]], Any]] = {
    "json": _read_json,
    "csv": _read_table,
    "npy": _read_npy,
    "hdf5": _read_hdf5,
}


def _text(source: Path | bytearray) -> str:
    # Programs on Windows begin a text with a byte order mark, which is no part of the first name.
    return (source if isinstance(source, bytearray) else source.read_bytes()).decode("utf-8-sig")


def _pick(values: dict[str, Any], field: str, kind: str) -> Any:
    if field not in values:
        raise OutputError(f"no {kind} '{field}'; {nearest(field, values) if values else 'there is none'}")
    return values[field]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _has_numbers(column: Sequence[str]) -> bool:
    return any(map(_is_number, column))


def _number(cell: str, column: str) -> float:
    """A cell's value; nothing in it means NaN."""
    if not cell.strip():
        return math.nan
    try:
        return float(cell)
    except ValueError:
        raise OutputError(f"column '{column}' has '{cell[:80]}' where a number is expected") from None
