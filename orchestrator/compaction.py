"""Many small files become few large ones; a kill at any moment loses no row and shows none twice.

The order of the steps is the protocol:

1. the manifest announces which files become which;
2. the merged file appears, whole: from now on it counts, and the others do not;
3. the others are deleted;
4. the manifest lists the merged file, and no merge any more.

Whoever comes after a kill finds the manifest of step 1 and, by whether the merged file is there, knows what counts.
"""

from __future__ import annotations

__all__ = ["compact", "plan", "small_files"]

import functools
import hashlib
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from .columns import GROUP_NUMBERS, GROUP_ROWS, PARQUET, SCHEMA, in_order
from .location import Folder, Location
from .manifest import Manifest, MergedFile, Merging, load_manifest, save_manifest

_LARGE = 64 << 20
_LARGEST = 128 << 20
_TINY = 1 << 20
_BATCH = 1 << 14


def compact(location: Location) -> int:
    """Merges what is small, after finishing a merge that was cut off; returns how many files were replaced.

    Memory stays flat: one row group is held at a time. One process may do this, the one that writes.

    Raises:
        RunDirectoryError: Something cannot be read or written. All rows remain, and it may be tried again.
    """
    if isinstance(location, Folder):
        location.discard_parts()
    manifest = _finish(location, load_manifest(location))
    sizes = location.files()
    visible = manifest.visible(sizes)
    groups = plan({name: sizes[name] for name in visible})
    for group in groups:
        key = hashlib.sha256("\n".join(group).encode()).hexdigest()[:12]
        merging = Merging(into=f"{group[0].split('-')[0]}-merged-{key}.parquet", files=tuple(group))
        manifest = manifest.model_copy(update={"merging": merging})
        save_manifest(location, manifest)
        try:
            location.put(merging.into, functools.partial(_merge, location, group))
        finally:
            manifest = _finish(location, manifest)
    return sum(map(len, groups))


def small_files(location: Location) -> int:
    """How many files `compact` might merge, or has begun to."""
    manifest, sizes = load_manifest(location), location.files()
    waiting = 0 if manifest.merging is None else len(manifest.merging.files)
    return max(waiting, sum(size < _LARGE for name, size in sizes.items() if name.endswith(".parquet")))


def plan(sizes: dict[str, int]) -> list[list[str]]:
    """Files to be merged, as groups of at most `_LARGEST` bytes.

    The largest of them is no larger than the others together: its rows end up in a file of twice its size, and no row
    is rewritten more often than sizes can double.
    """
    small = sorted((name for name in sizes if sizes[name] < _LARGE), key=lambda name: sizes[name])
    while small and sizes[small[-1]] > max(_TINY, sum(sizes[name] for name in small[:-1])):
        small.pop()
    groups: list[list[str]] = [[]]
    for name in sorted(small):
        if sum(sizes[other] for other in groups[-1]) + sizes[name] > _LARGEST:
            groups.append([])
        groups[-1].append(name)
    return [group for group in groups if len(group) > 1]


def _merge(location: Location, names: list[str], file: pa.NativeFile) -> None:
    with location.reporting("read"), pq.ParquetWriter(file, SCHEMA, **PARQUET) as writer:
        group: list[pa.Table] = []
        rows = size = 0
        for table in _tables(location, names):
            group.append(table)
            rows, size = rows + len(table), size + table.nbytes
            if rows >= GROUP_ROWS or size >= 8 * GROUP_NUMBERS:
                writer.write_table(in_order(pa.concat_tables(group)))
                group, rows, size = [], 0, 0
        if group:
            writer.write_table(in_order(pa.concat_tables(group)))
    pa.default_memory_pool().release_unused()


def _tables(location: Location, names: list[str]) -> Iterator[pa.Table]:
    for name in names:
        with location.filesystem.open_input_file(location.path(name)) as file:
            for batch in pq.ParquetFile(file, pre_buffer=True).iter_batches(_BATCH, use_threads=False):
                # Files of earlier versions call the numbers of a list by another name.
                yield pa.Table.from_batches([batch]).select(SCHEMA.names).cast(SCHEMA)


def _finish(location: Location, manifest: Manifest) -> Manifest:
    """Steps 3 and 4, if step 2 has happened; else forgets the merge."""
    merging = manifest.merging
    if merging is None:
        return manifest
    listed = location.files()
    merged = manifest.merged
    if merging.into in listed:
        for name in merging.files:
            if name in listed:
                location.delete(name)
        kept = [file for file in merged if file.name not in merging.files]
        merged = (*kept, _described(location, merging.into, listed[merging.into]))
    manifest = Manifest(merged=merged)
    save_manifest(location, manifest)
    return manifest


def _described(location: Location, name: str, size: int) -> MergedFile:
    with location.reporting("read"), location.filesystem.open_input_file(location.path(name)) as file:
        metadata = pq.ParquetFile(file).metadata
        ids = [metadata.row_group(i).column(0).statistics for i in range(metadata.num_row_groups)]
    return MergedFile(
        name=name, rows=metadata.num_rows, first_id=min(s.min for s in ids), last_id=max(s.max for s in ids), bytes=size
    )
