"""Reading the observed data of a targeted campaign."""

from __future__ import annotations

__all__ = ["Observation", "check_length", "numbers", "read_observation", "recorded_observation", "with_others"]

import contextlib
import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulators.errors import ObservationError, nearest
from simulators.outcome import Array

from .config import ObservationConfig
from .repeated_columns import repeated_columns


@dataclass(frozen=True)
class Observation:
    """Observed data as the simulator would return them.

    Attributes:
        x: `(k,)`, series after series.
        series: Names of the series, empty for a plain vector.
        index: Common index of the series, `(k / len(series),)`, or None.
        index_name: What the index is, such as "year".
        also: Further observations that simulations shall serve too, each `(k,)`.
    """

    x: Array
    series: tuple[str, ...] = ()
    index: Array | None = None
    index_name: str = ""
    also: tuple[Array, ...] = ()

    @property
    def all(self) -> Array:
        """This observation and the further ones, `(m, k)`."""
        return np.stack([self.x, *self.also])

    @property
    def digest(self) -> str:
        """Identifies the numbers of `all`."""
        return hashlib.sha256(self.all.tobytes()).hexdigest()[:16]


def read_observation(config: ObservationConfig, folder: Path) -> Observation:
    """The observation in a file (`.csv`, `.parquet`, `.npy`, `.json`) relative to `folder`, and those beside it.

    Raises:
        ObservationError: Missing, malformed, a column that is not there, values that are not finite numbers, or
            observations of different lengths.
    """
    observation = _read(config, folder)
    also = tuple(_read(config.model_copy(update={"file": file}), folder).x for file in config.also)
    return with_others(observation, also, config.also)


def with_others(observation: Observation, also: Sequence[Array], names: Sequence[str]) -> Observation:
    """The observation with further ones beside it.

    Raises:
        ObservationError: One has another length.
    """
    for name, x in zip(names, also, strict=True):
        if x.shape != observation.x.shape:
            raise ObservationError(
                f"expected {observation.x.size} numbers in each observation, as in the first, got {x.size} in {name}"
            )
    return replace(observation, also=tuple(also))


def _read(config: ObservationConfig, folder: Path) -> Observation:
    path = folder / Path(config.file).expanduser()
    if not path.is_file():
        raise ObservationError(f"expected the observation at {path}, but there is no such file; check the path")
    suffix = path.suffix.lower()
    if suffix in (".npy", ".json") and (config.columns or config.index):
        raise ObservationError(
            f"{path} is a list of numbers and has no columns; remove `columns` and `index`, or give a table "
            "(.csv, .parquet)"
        )
    try:
        if suffix in (".csv", ".parquet"):
            frame = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
            return _from_table(frame, config, path)
        if suffix == ".npy":
            values = np.load(path, allow_pickle=False)
            if not isinstance(values, np.ndarray):
                raise TypeError("it is an archive of arrays; save the array alone")
        elif suffix == ".json":
            values = json.loads(path.read_text())
            if isinstance(values, dict):
                raise ObservationError(
                    f"{path}: expected a list of numbers, got an object with {', '.join(list(values)[:5])}; give its "
                    "values as one list, in the order in which the simulator returns them"
                )
        else:
            raise ObservationError(f"expected a .csv, .parquet, .npy or .json file as observation, got {path}")
    except ObservationError:
        raise
    except (ValueError, TypeError, OSError, EOFError, RecursionError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ObservationError(f"{path} cannot be read as numbers: {reason}") from error
    return Observation(numbers(values, str(path)))


def numbers(values: Any, source: str) -> Array:
    """An observation `(k,)` of whatever holds its numbers; `source` is where they came from.

    Raises:
        ObservationError: They are complex, dates or no numbers at all; or not finite, or none.
    """
    try:
        # Asked for doubles, NumPy would drop imaginary parts and count the days of dates.
        kind = np.asarray(values).dtype
        if kind.kind in "cmM":
            raise TypeError(f"expected real numbers, got {kind}; give what the simulator returns as real numbers")
        x = np.asarray(values, dtype=np.float64).ravel()
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ObservationError(f"the observation in {source} cannot be read as numbers: {reason}") from error
    return _finite(x, source)


def check_length(observed: int | None, simulated: int | None, store: str) -> None:
    """Whether observation and simulations, which are in `store`, have as many numbers; None for what is not known.

    Raises:
        ObservationError: They have not.
    """
    if None not in (observed, simulated) and observed != simulated:
        raise ObservationError(
            f"the observation has {observed} numbers, but the simulator returned {simulated}; both must list the same "
            f"quantities in the same order. The simulations are kept in {store}: mend the observation and run again to "
            "go on with them, or mend the simulator and choose another --dir"
        )


def recorded_observation(records: Mapping[str, Any]) -> Observation | None:
    """The observation in a run directory's records; None of an amortized campaign."""
    stored = records.get("observation")
    if stored is None:
        return None
    index = None if stored["index"] is None else np.array(stored["index"])
    also = tuple(np.array(x) for x in stored.get("also", []))
    return Observation(np.array(stored["x"]), tuple(stored["series"]), index, stored["index_name"], also)


def _from_table(frame: pd.DataFrame, config: ObservationConfig, path: Path) -> Observation:
    available = [str(c) for c in frame.columns]
    if path.suffix.lower() == ".csv" and not config.columns and available and all(map(_is_number, available)):
        raise ObservationError(
            f"{path}: expected the names of the columns in the first line, got the numbers {', '.join(available[:5])}; "
            "put a line of names before them, or list these in `columns` if they are names"
        )

    repeated = repeated_columns(path, frame)
    for name in [*config.columns, *([config.index] if config.index else [])]:
        if name not in available:
            raise ObservationError(f"{path} has no column '{name}'; {nearest(name, available)}")
    columns = config.columns or [c for c in available if c != config.index]
    for name in [*columns, *([config.index] if config.index else [])]:
        if name in repeated:
            raise ObservationError(f"expected one column '{name}' in {path}, got several of that name; rename them")
    try:
        if any(kind.kind in "cmM" for kind in frame[columns].dtypes):
            raise TypeError(f"got {', '.join(sorted({str(kind) for kind in frame[columns].dtypes}))}")
        x = frame[columns].to_numpy(dtype=np.float64).T.ravel()
    except (ValueError, TypeError) as error:
        raise ObservationError(f"{path}: columns {', '.join(columns)} must hold numbers: {error}") from error
    index = None
    if config.index is not None and pd.api.types.is_numeric_dtype(frame[config.index]):
        index = frame[config.index].to_numpy(dtype=np.float64)
    return Observation(_finite(x, str(path)), tuple(columns), index, config.index or "row")


def _is_number(name: str) -> bool:
    """Whether a column's name is a number, perhaps with the `.1` that pandas gives to the second of that name."""
    for text in (name, name.rpartition(".")[0]):
        with contextlib.suppress(ValueError):
            float(text)
            return True
    return False


def _finite(x: Array, source: str) -> Array:
    """`x` as it is.

    Raises:
        ObservationError: It is empty, or some of its numbers are NaN or infinite.
    """
    if x.size == 0:
        raise ObservationError(f"the observation in {source} is empty")
    if not np.isfinite(x).all():
        raise ObservationError(f"the observation in {source} has {int((~np.isfinite(x)).sum())} NaN or infinite values")
    return x
