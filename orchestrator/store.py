"""The store: every simulation as a row of an append-only Parquet dataset. It is the truth of a campaign.

A file appears whole or not at all, so a killed campaign leaves no half row.
"""

from __future__ import annotations

__all__ = ["SCHEMA", "SimulationStore", "StoreSummary", "split_columns"]

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from simulators.errors import RunDirectoryError
from simulators.outcome import Status

from . import compaction
from .columns import GROUP_NUMBERS, GROUP_ROWS, PARQUET, SCHEMA, in_order, split_columns, to_table
from .location import open_location
from .manifest import ChangingError, load_manifest
from .proposal import Finished, ProposalKind

_ATTEMPTS = 20
_CLAIM = "_campaign.json"
_OK = ds.field("status") == str(Status.OK)
_T = TypeVar("_T")


@dataclass(frozen=True)
class StoreSummary:
    """What a store holds, in a few numbers.

    Attributes:
        counts: Rows by how they were proposed and how they ended.
        seconds: Seconds of all simulations together, where known.
        learning_seconds: Of those of this campaign that may be learned from.
        highest_id: Highest id, -1 if there is no row.
        width: Length of x, None while there is no result.
        parameters: Length of theta, None while there is no row.
    """

    counts: Counter[tuple[ProposalKind, Status]] = field(default_factory=Counter)
    seconds: float = 0.0
    learning_seconds: float = 0.0
    highest_id: int = -1
    width: int | None = None
    parameters: int | None = None

    @property
    def rows(self) -> int:
        """All rows."""
        return self.counts.total()

    @property
    def by_kind(self) -> Counter[str]:
        """Rows by how they were proposed."""
        result: Counter[str] = Counter()
        for (kind, _), count in self.counts.items():
            result[kind] += count
        return result


class SimulationStore:
    """Rows of `location/*.parquet`.

    One process at a time may write. Any number may read meanwhile.

    Arguments:
        location: A folder, or a URI such as `s3://bucket/prefix`, `file:///folder` or any that Arrow or fsspec know.
            Credentials come from the environment. A folder is made by the first row.

    Raises:
        RunDirectoryError: A URI that cannot be used.
    """

    def __init__(self, location: str | Path) -> None:
        self._location = open_location(location)
        self.location = self._location.text

    def append(self, rows: Finished) -> None:
        """Writes finished simulations as one new file; on return they are durable.

        The same rows make the same file: to append them again after an error writes nothing twice.

        Raises:
            RunDirectoryError: They could not be written; then none is visible, or all are.
        """
        if not len(rows):
            return
        ids = rows.proposals.id
        key = hashlib.sha256(ids.tobytes() + rows.outcomes.started.tobytes()).hexdigest()[:12]
        step = int(min(GROUP_ROWS, max(1, GROUP_NUMBERS // max(1, rows.outcomes.lengths.max()))))

        def write(file: pa.NativeFile) -> None:
            with pq.ParquetWriter(file, to_table(Finished.none()).schema, **PARQUET) as writer:
                for begin in range(0, len(rows), step):
                    part = rows if len(rows) <= step else rows.take(np.arange(begin, min(begin + step, len(rows))))
                    writer.write_table(to_table(part))

        self._location.put(f"{ids.min():012d}-{key}.parquet", write)

    def read(self, columns: Sequence[str] | None = None, where: pc.Expression | None = None) -> pa.Table:
        """All rows, or those that `where` chooses, in the order of their ids, each id once.

        Raises:
            RunDirectoryError: The store cannot be read; names the file if one is damaged.
        """
        wanted = None if columns is None else _with_id(columns)
        return self._scan(lambda dataset: _rows(dataset, wanted, where))

    def pieces(
        self, columns: Sequence[str], rows: int = GROUP_ROWS, where: pc.Expression | None = None
    ) -> Iterator[pa.Table]:
        """What `read` gives, from up to `rows` rows at a time: a large store need not fit into memory."""
        ids = self.ids()
        for part in np.split(ids, np.arange(rows, len(ids), rows)) if len(ids) else []:
            inside = (ds.field("id") >= int(part[0])) & (ds.field("id") <= int(part[-1]))
            yield self.read(columns, inside if where is None else inside & where)

    def ids(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Ids of all rows, increasing."""
        ids: np.ndarray[Any, np.dtype[np.int64]] = self.read(["id"])["id"].to_numpy()
        return ids

    def summary(self, since: int = 0) -> StoreSummary:
        """What is there, of ids from `since` on."""
        columns = ["id", "status", "proposal", "seconds"]
        chosen = None if since <= 0 else ds.field("id") >= since
        table = self._scan(lambda dataset: _rows(dataset, columns, chosen))
        if not len(table):
            return StoreSummary()
        counts: Counter[tuple[ProposalKind, Status]] = Counter()
        groups = table.group_by(["proposal", "status"]).aggregate([("id", "count"), ("seconds", "sum")])
        seconds = learning = 0.0
        try:
            for group in groups.to_pylist():
                kind, taken = ProposalKind(group["proposal"]), group["seconds_sum"] or 0.0
                counts[kind, Status(group["status"])] = group["id_count"]
                seconds += taken
                learning += taken if kind.trains and kind.spends else 0.0
        except ValueError as error:
            raise RunDirectoryError(
                f"the store {self.location} has rows of another temperflow: {error}; upgrade temperflow"
            ) from error
        succeeded = any(status is Status.OK for _, status in counts)
        width = self._scan(functools.partial(_length, "x", _OK)) if succeeded else None
        parameters = self._scan(functools.partial(_length, "theta", None))
        return StoreSummary(counts, seconds, learning, int(table["id"][-1].as_py()), width, parameters)

    def digest(self) -> str:
        """SHA-256 of the ids, parameters, results and statuses of all rows: the identity of what was simulated."""
        digest = hashlib.sha256(self.ids().tobytes())
        for name in ("theta", "x", "status"):
            length = pc.binary_length if name == "status" else pc.list_value_length
            # Twice through a column: all lengths come before all values.
            for table in self.pieces([name]):
                digest.update(pc.fill_null(length(table[name]), -1).to_numpy().astype(np.int64).tobytes())
            for table in self.pieces([name]):
                for chunk in table[name].chunks:
                    if name == "status":
                        digest.update("".join(chunk.to_pylist()).encode())
                    else:
                        digest.update(pc.list_flatten(chunk).to_numpy(zero_copy_only=False).tobytes())
        return digest.hexdigest()

    @staticmethod
    def successes(*kinds: ProposalKind) -> pc.Expression:
        """For `read`: simulations with a result that were proposed in one of these ways."""
        return _OK & ds.field("proposal").isin([str(kind) for kind in kinds])

    def claim(self, owner: str, place: str) -> None:
        """Notes that the store belongs to one campaign; two would overwrite one another's ids.

        Arguments:
            owner: Identity of the campaign's run directory.
            place: Where that is, for a person to read.

        Raises:
            RunDirectoryError: It belongs to another one, or cannot be written.
        """
        try:
            claim = json.loads(self._location.read(_CLAIM))
        except FileNotFoundError:
            claim = None
        except ValueError:
            claim = {}
        if claim is None or (claim.get("owner") != owner and not len(self)):
            content = json.dumps({"owner": owner, "run_directory": place}).encode()
            self._location.put(_CLAIM, lambda file: file.write(content))
        elif claim.get("owner") != owner:
            raise RunDirectoryError(
                f"the store {self.location} belongs to the campaign in {claim.get('run_directory', 'another folder')}; "
                f"choose another store or, if that campaign is gone, delete {_CLAIM} there to go on with its rows"
            )

    def compact(self) -> int:
        """Merges small files; returns how many. For the one process that writes.

        Raises:
            RunDirectoryError: It could not be done; all rows remain.
        """
        try:
            return compaction.compact(self._location)
        except (ChangingError, FileNotFoundError) as error:
            raise self._lacks(error) from error

    def small_files(self) -> int:
        """How many files `compact` might merge."""
        return compaction.small_files(self._location)

    def __len__(self) -> int:
        return len(self.ids())

    def _scan(self, use: Callable[[ds.Dataset], _T]) -> _T:
        """`use` of a consistent set of files: looks again if a merge took some away meanwhile."""
        missing: Exception | None = None
        for _ in range(_ATTEMPTS):
            listed = self._location.files()
            try:
                names = load_manifest(self._location).visible(listed)
                return self._use(names, use)
            except (ChangingError, FileNotFoundError) as error:
                missing = error
        raise self._lacks(missing) from missing

    def _lacks(self, missing: Exception | None) -> RunDirectoryError:
        return RunDirectoryError(
            f"the store {self.location} lacks a file: {missing}; put it back, or delete _manifest.json there to go on "
            "without its rows"
        )

    def _use(self, names: Sequence[str], use: Callable[[ds.Dataset], _T]) -> _T:
        dataset = self._dataset(names)
        try:
            return use(dataset)
        except FileNotFoundError:
            raise
        except (pa.ArrowException, OSError) as error:
            for name in names:
                try:
                    _rows(self._dataset([name]))
                except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as damage:
                    raise RunDirectoryError(
                        f"the store {self.location} cannot be read: {name} is damaged ({damage}); move the damaged "
                        "file aside to continue"
                    ) from error
            with self._location.reporting("read"):
                raise

    def _dataset(self, names: Sequence[str]) -> ds.Dataset:
        paths = [self._location.path(name) for name in names]
        if not paths:
            return ds.dataset(SCHEMA.empty_table())
        factory = ds.FileSystemDatasetFactory(self._location.filesystem, paths, ds.ParquetFileFormat())
        return factory.finish(SCHEMA)


def _with_id(columns: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(["id", *columns]))


def _rows(dataset: ds.Dataset, columns: Sequence[str] | None = None, chosen: pc.Expression | None = None) -> pa.Table:
    table = dataset.to_table(columns=columns, filter=chosen)
    if table["id"].null_count:
        raise pa.ArrowInvalid("it has rows without an id")
    return in_order(table)


def _length(column: str, chosen: pc.Expression | None, dataset: ds.Dataset) -> int:
    """Length of the first of the lists in a column."""
    for batch in dataset.to_batches(columns=[column], filter=chosen, batch_size=1024, batch_readahead=1):
        if len(batch):
            return int(pc.list_value_length(batch[column])[0].as_py())
    raise AssertionError("such a row was counted")
