"""How fast is the store, and what does it cost the process that runs a campaign?

    python -m benchmarks.store --rows 1000000 --trickle 20

Rows as a campaign writes them: two parameters, two results, one in a hundred failed. Each figure is printed beside its
target, or beside the same work by a peer in the same run: Arrow's own writer with its defaults on a ready table, and
pandas on a ready frame.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table

from orchestrator.proposal import Finished, ProposalKind, Proposals
from orchestrator.store import SimulationStore, split_columns
from orchestrator.store_writer import StoreWriter
from simulators.outcome import Outcomes, Status

PART = 1_000


def campaign_rows(n: int) -> Finished:
    """`n` finished simulations."""
    rng = np.random.default_rng(0)
    proposals = Proposals.of_kind(
        0, rng.normal(size=(n, 2)), ProposalKind.TEMPERED, 1, rng.normal(size=n), rng.random(n)
    )
    failed = rng.random(n) < 0.01
    lengths = np.where(failed, -1, 2)
    outcomes = Outcomes(
        np.where(failed, Status.NOT_FINITE.code, Status.OK.code).astype(np.uint8),
        lengths,
        rng.normal(size=int(lengths.clip(0).sum())),
        np.linspace(1.7e9, 1.7e9 + n * 1e-3, n, endpoint=False),
        rng.exponential(size=n),
        dict.fromkeys(np.flatnonzero(failed).tolist(), "1 of 2 values are NaN or infinite"),
    )
    workers = np.array([f"node-{i}:{4000 + i}" for i in range(64)], dtype=object)
    return Finished(proposals, outcomes, np.ones(n, dtype=np.int64), workers[np.arange(n) % 64])


def as_they_end(rows: Finished, files: int) -> list[Finished]:
    """The rows in `files` parts, in the order in which simulations of different length end."""
    n = len(rows)
    order = np.argsort(np.arange(n) + np.random.default_rng(1).exponential(size=n) * 500)
    return [rows.take(np.sort(part)) for part in np.array_split(order, files)]


class Peak:
    """MiB that this process occupies at most, above what it occupies now (Linux)."""

    def __init__(self) -> None:
        pa.default_memory_pool().release_unused()
        Path("/proc/self/clear_refs").write_text("5")  # The peak begins anew.
        self._before = self._read("VmRSS")

    def above(self) -> float:
        return self._read("VmHWM") - self._before

    def _read(self, key: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def seconds(work: Callable[[], object]) -> float:
    """Wall time of `work`."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def appending(folder: Path, rows: Finished, report: Table) -> None:
    """One file with all rows, against peers."""
    store = SimulationStore(folder / "ours")
    ours = min(seconds(lambda: store.append(rows)) for _ in range(3))
    table = store.read()
    arrow = min(seconds(lambda: pq.write_table(table, folder / "arrow.parquet")) for _ in range(3))
    frame = table.to_pandas()
    pandas = seconds(lambda: frame.to_parquet(folder / "pandas.parquet"))
    size = sum(file.stat().st_size for file in (folder / "ours").iterdir()) / len(rows)
    n = len(rows)
    report.add_row("append, table included, rows/s on one core", f"{n / ours:,.0f}", "1,000,000")
    report.add_row("  Arrow's writer, table ready, defaults", f"{n / arrow:,.0f}", "peer")
    report.add_row("  pandas, frame ready", f"{n / pandas:,.0f}", "peer")
    report.add_row(
        "  bytes a row (Arrow's writer)", f"{size:.0f} ({(folder / 'arrow.parquet').stat().st_size / n:.0f})", ""
    )


def compacting_and_scanning(folder: Path, rows: Finished, report: Table) -> None:
    """200 files merged, then read as a new process would."""
    store = SimulationStore(folder / "many")
    for part in as_they_end(rows, 200):
        store.append(part)
    report.add_row("open and scan before merging, s", f"{seconds(lambda: scan(folder / 'many')):.2f}", "")
    peak = Peak()
    report.add_row("200 files merged into one, s", f"{seconds(store.compact):.2f}", "")
    report.add_row("  memory meanwhile, MiB", f"{peak.above():.0f}", "50")
    scanned = min(seconds(lambda: scan(folder / "many")) for _ in range(3))
    report.add_row("open and scan (len, summary, read, arrays), s", f"{scanned:.2f}", "2")
    report.add_row("  digest, s", f"{seconds(SimulationStore(folder / 'many').digest):.2f}", "")


def scan(folder: Path) -> None:
    """Everything that a continued campaign asks of its store."""
    store = SimulationStore(folder)
    assert len(store) == store.summary().rows == len(split_columns(store.read())[0])


def writing(folder: Path, rows: Finished, report: Table) -> None:
    """All rows through the writer, in parts as a pool of cheap simulations gives them."""
    parts = [rows.take(np.arange(i, min(i + PART, len(rows)))) for i in range(0, len(rows), PART)]
    store = SimulationStore(folder / "writer")
    peak, putting = Peak(), 0.0
    begin = time.perf_counter()
    writer = StoreWriter(store)
    for part in parts:
        putting += seconds(partial(writer.put, part))
        while writer.waiting > 100_000:
            writer.flush(0.01)
        writer.committed()
    writer.flush()
    elapsed = time.perf_counter() - begin
    writer.close()
    report.add_row(f"writer, parts of {PART:,} rows, rows/s until durable", f"{len(rows) / elapsed:,.0f}", "500,000")
    report.add_row("  time in `put`, microseconds a row", f"{1e6 * putting / len(rows):.3f}", "")
    report.add_row("  memory meanwhile, MiB", f"{peak.above():.0f}", "50")


def trickling(folder: Path, rows: Finished, length: float, report: Table) -> None:
    """64 rows a second, one by one: what the writer costs the process, and how long a row waits."""
    singles = [rows.take(np.array([i])) for i in range(int(64 * length))]

    def pace(put: Callable[[Finished], None], look: Callable[[], None]) -> float:
        begin, cpu = time.perf_counter(), time.process_time()
        for i, row in enumerate(singles):
            time.sleep(max(0.0, begin + i / 64 - time.perf_counter()))
            put(row)
            look()
        return (time.process_time() - cpu) / len(singles)

    idle = pace(lambda _: None, lambda: None)
    writer = StoreWriter(SimulationStore(folder / "trickle"))
    put_at: dict[int, float] = {}
    waited: list[float] = []

    def put(row: Finished) -> None:
        put_at[int(row.proposals.id[0])] = time.perf_counter()
        writer.put(row)

    def look() -> None:
        now = time.perf_counter()
        waited.extend(now - put_at[int(row.proposals.id[0])] for row in writer.committed())

    busy = pace(put, look)
    report.add_row("64 rows/s: CPU milliseconds a row", f"{1e3 * (busy - idle):.2f}", "far below 1")
    report.add_row(
        "  seconds until durable, median (largest)", f"{statistics.median(waited):.2f} ({max(waited):.2f})", "(0.5)"
    )
    report.add_row("  closing, merging included, s", f"{seconds(writer.close):.2f}", "")


def main(
    rows: Annotated[int, typer.Option(help="Rows of the store.")] = 1_000_000,
    trickle: Annotated[float, typer.Option(help="Seconds of rows that come one by one.")] = 20.0,
) -> None:
    """Prints the table."""
    report = Table("what", "measured", "target", title=f"The store, {rows:,} rows, {os.cpu_count()} cores")
    folder = Path(tempfile.mkdtemp(prefix="temperflow-store-"))
    try:
        finished = campaign_rows(rows)
        writing(folder / "first", campaign_rows(20 * PART), Table())  # Loads the code.
        writing(folder, finished, report)
        trickling(folder, finished, trickle, report)
        compacting_and_scanning(folder, finished, report)
        pa.set_cpu_count(1)
        appending(folder, finished, report)
    finally:
        shutil.rmtree(folder)
    Console(width=120).print(report)


if __name__ == "__main__":
    typer.run(main)
