"""The report of a million simulations: seconds to write it, and the size of the file.

Run as `python -m benchmarks.report [--rows N]` (`make bench-report`). A run directory is made up: a store of N rows of
the store's own schema, 8 parameters and 42 results, log-normal durations on 64 workers, one row in a hundred failed.
Its posterior is trained on a thousand more, so that the report has all of its parts. Only `temperflow report` is timed,
as a process of its own (with the start of Python) and inside this one.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from learners import TemperedPosterior
from learners.distillation import DistillationOptions
from learners.options import LearnerOptions
from learners.surrogate import SurrogateOptions
from learners.threads import bounded_threads
from learners.training import TrainOptions
from orchestrator.checking import check
from orchestrator.config_reading import validate_config
from orchestrator.reporting import make_report
from orchestrator.run_directory import RunDirectory
from orchestrator.store import SCHEMA
from orchestrator.temperatures import report_betas

_D, _K, _WORKERS, _FILES = 8, 42, 64, 100
_KINDS = ("prior", "tempered", "acquisition")


def make_store(run: RunDirectory, rows: int, rng: np.random.Generator) -> None:
    """N simulations of `x = A theta + noise` in files of about ten thousand rows."""
    mixing = np.random.default_rng(1).normal(size=(_D, _K))
    clock = np.zeros(_WORKERS)
    run.simulations.mkdir(parents=True)
    for ids in np.array_split(np.arange(rows), min(_FILES, max(1, rows // 100))):
        n = len(ids)
        theta = rng.normal(size=(n, _D))
        x = theta @ mixing + rng.normal(size=(n, _K))
        seconds = np.exp(0.5 * theta[:, 0] + rng.normal(size=n))
        worker = np.arange(n) % _WORKERS
        started = np.empty(n)
        for w in range(_WORKERS):
            mine = seconds[worker == w]
            started[worker == w] = clock[w] + np.concatenate([[0.0], np.cumsum(mine[:-1] + 0.002)])
            clock[w] += float((mine + 0.002).sum())
        failed = rng.uniform(size=n) < 0.01
        kind = rng.integers(0, len(_KINDS), size=n)
        beta = np.where(kind == 0, np.nan, np.exp(rng.uniform(np.log(0.1), np.log(2.0), size=n)))
        density = -0.5 * np.square(theta).sum(axis=1) - 0.5 * _D * np.log(2 * np.pi)
        table = pa.table(
            {
                "id": ids,
                "theta": list(theta),
                "x": [None if f else row for f, row in zip(failed, x, strict=True)],
                "status": np.where(failed, "timeout", "ok"),
                "reason": np.where(failed, "killed after 60 s", ""),
                "attempts": np.ones(n, dtype=np.int32),
                "worker": [f"host{w // 8}:{1000 + w}" for w in worker],
                "started": ((1.7e9 + started) * 1e6).astype("int64").astype("datetime64[us]"),
                "seconds": seconds,
                "proposal": [_KINDS[k] if i >= 1200 else "calibration-prior" for i, k in zip(ids, kind, strict=True)],
                "proposal_log_density": pa.array(density, mask=kind == 2),
                "beta": pa.array(beta, mask=np.isnan(beta)),
                "seed": ids,
            }
        ).cast(SCHEMA)
        pq.write_table(table, run.simulations / f"{ids[0]:012d}-bench.parquet")


def make_run(folder: Path, rows: int) -> RunDirectory:
    """A finished campaign's run directory."""
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    run = RunDirectory(folder)
    make_store(run, rows, rng)
    names = [f"p{i}" for i in range(_D)]
    config = validate_config(
        {
            "name": "bench-report",
            "simulator": {"function": "model.py:simulate"},
            "parameters": {name: {"distribution": "Normal", "loc": 0, "scale": 1} for name in names},
            "budget": {"simulations": rows},
        },
        "the benchmark",
    )
    mixing = np.random.default_rng(1).normal(size=(_D, _K))
    x_o = rng.normal(size=_D) @ mixing + rng.normal(size=_K)
    prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(_D), torch.ones(_D)), 1)
    theta = prior.sample((1000,))
    x = theta.double() @ torch.as_tensor(mixing) + torch.randn(1000, _K)
    quick = TrainOptions(max_epochs=5)
    options = LearnerOptions(
        surrogate=SurrogateOptions(members=("linear",), hidden=(24,), training=quick),
        bank=16,
        distillation=DistillationOptions(pairs=5000, epochs=5),
        threads=1,
    )
    posterior = TemperedPosterior.fit(theta, x, prior, options=options)
    posterior.names = tuple(names)
    posterior.set_default_x(x_o)
    posterior.save(run.posterior)
    betas = report_betas(posterior.beta_range)
    draws = np.stack([posterior.sample((400,), beta=b, seed=i).numpy() for i, b in enumerate(betas)])
    predicted = draws @ mixing + rng.normal(size=(*draws.shape[:2], _K))
    np.savez_compressed(folder / "predictive.npz", beta=np.array(betas), theta=draws, x=predicted)
    run.update(
        identity={},
        config=config.model_dump(mode="json"),
        names=names,
        observation={"x": x_o.tolist(), "series": [], "index": None, "index_name": ""},
        started=1.7e9,
        finished=1.7e9 + 1e5,
    )
    with bounded_threads(1):
        check(run, posterior, 100, 0)
    return run


def main() -> None:
    """Prints the figures; see the module."""
    parser = argparse.ArgumentParser(description="Time the report of many simulations.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "run", rows)
        begin = time.perf_counter()
        subprocess.run([Path(sys.executable).with_name("temperflow"), "report", str(run.path)], check=True)
        command = time.perf_counter() - begin
        begin = time.perf_counter()
        make_report(run)
        function = time.perf_counter() - begin
        size = run.report.stat().st_size / 2**20
    print(f"{rows:,} simulations, {platform.machine()}, {os.cpu_count()} cores")
    print(f"  temperflow report       {command:6.2f} s")
    print(f"  make_report, once more  {function:6.2f} s")
    print(f"  report.html             {size:6.2f} MiB")


if __name__ == "__main__":
    main()
