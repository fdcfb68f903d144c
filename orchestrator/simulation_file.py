"""Reading simulations that were made elsewhere: Parquet, NumPy, CSV and HDF5 files."""

from __future__ import annotations

__all__ = ["read_simulations"]

import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from simulators.errors import DataError, nearest
from simulators.outcome import Array

from .columns import split_columns
from .repeated_columns import repeated_columns


def read_simulations(file: Path, names: Sequence[str]) -> tuple[Array, Array]:
    """`theta` `(n, d)` and `x` `(n, k)` of a file; x may have values that are no numbers.

    NumPy and HDF5 files hold arrays `theta` and `x`. Tables hold a column for each of `names`, and all other columns
    are x in their order; or they have two columns of lists, `theta` and `x`, as the store itself.

    Raises:
        DataError: Missing, of another format, or not numbers of that shape.
    """
    readers = {".parquet": _parquet, ".csv": _csv, ".npz": _npz, ".h5": _hdf5, ".hdf5": _hdf5}
    reader: Callable[[Path, Sequence[str]], tuple[Any, Any]] | None = readers.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"expected a .parquet, .npz, .csv, .h5 or .hdf5 file, got {file}")
    if not file.is_file():
        raise DataError(f"expected simulations in {file}, but there is no such file; check the path")
    try:
        found = reader(file, names)
        theta, x = _matrix(found[0], "theta", file), _matrix(found[1], "x", file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, pa.ArrowException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{file} cannot be read: {reason}") from error
    if len(theta) != len(x):
        raise DataError(f"expected as many rows of x as of theta in {file}, got {len(x)} and {len(theta)}")
    if theta.shape[1] != len(names):
        raise DataError(
            f"expected theta with {len(names)} columns ({', '.join(names)}) in {file}, got {theta.shape[1]}"
        )
    if not x.size:
        raise DataError(f"{file} holds no simulations: theta has shape {theta.shape}, x has shape {x.shape}")
    return theta, x


def _parquet(file: Path, names: Sequence[str]) -> tuple[Any, Any]:
    table = pq.ParquetFile(file).read()
    if not {"theta", "x"} <= set(table.column_names):
        return _columns(table.to_pandas(), names, file)
    for name in ("theta", "x"):
        kind = table.schema.field(name).type
        if not (pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind)):
            return _columns(table.to_pandas(), names, file)
        if not (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type)):
            raise DataError(f"expected lists of numbers in column '{name}' of {file}, got {kind}")
        lengths = pc.unique(pc.drop_null(pc.list_value_length(table[name]))).to_pylist()
        if len(lengths) > 1:
            raise DataError(f"expected lists of one length in column '{name}' of {file}, got {sorted(lengths)}")
    if table["theta"].null_count:
        raise DataError(f"expected a theta in each row of {file}, but {table['theta'].null_count} have none")
    return split_columns(table)


def _csv(file: Path, names: Sequence[str]) -> tuple[Any, Any]:
    return _columns(pd.read_csv(file, float_precision="round_trip"), names, file)


def _columns(frame: pd.DataFrame, names: Sequence[str], file: Path) -> tuple[Any, Any]:
    frame.columns = pd.Index([str(column) for column in frame.columns])
    repeated = repeated_columns(file, frame)
    for name in names:
        if name not in frame:
            raise DataError(f"{file} has no column '{name}'; {nearest(name, frame.columns)}")
        if name in repeated:
            raise DataError(f"expected one column '{name}' in {file}, got several of that name; rename them")
    # Those of x are told apart by their places.
    others = [i for i, name in enumerate(frame.columns) if name not in names]
    for i, name in enumerate(frame.columns):
        if not name or name.startswith("Unnamed:"):
            raise DataError(f"{file} has a column without a name, perhaps an index; write it without that, or name it")
        kind = frame.dtypes.iloc[i]
        if not pd.api.types.is_numeric_dtype(kind) or kind.kind == "c":
            raise DataError(f"expected numbers in column '{name}' of {file}, got {kind}")
    theta, x = frame[list(names)], frame.iloc[:, others]
    return theta.to_numpy(np.float64, na_value=np.nan), x.to_numpy(np.float64, na_value=np.nan)


def _npz(file: Path, names: Sequence[str]) -> tuple[Any, Any]:
    with np.load(file, allow_pickle=False) as arrays:
        return _named(arrays, "theta", file), _named(arrays, "x", file)


def _hdf5(file: Path, names: Sequence[str]) -> tuple[Any, Any]:
    with h5py.File(file) as arrays:
        return _named(arrays, "theta", file), _named(arrays, "x", file)


def _named(arrays: Any, name: str, file: Path) -> Any:
    if name not in arrays:
        raise DataError(f"{file} has no array '{name}'; it has {', '.join(arrays) or 'none'}")
    return np.asarray(arrays[name])


def _matrix(values: Any, name: str, file: Path) -> Array:
    """Numbers `(n, ...)` as `(n, k)`; a vector is one column."""
    if values.dtype.kind not in "fiub" or values.ndim == 0:
        raise DataError(
            f"expected {name} in {file} to be an array of numbers (n, ...), got {values.dtype} of shape {values.shape}"
        )
    return np.ascontiguousarray(values, dtype=np.float64).reshape(len(values), int(np.prod(values.shape[1:])))
