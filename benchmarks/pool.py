"""The pool beside its peers: how busy the slots are, how many cheap simulations reach the store, what it costs.

`python -m benchmarks.pool` runs every case in a process of its own, one after the other, and prints each figure next to
its target; `--cases NAME,...` runs some. Ours goes through `Campaign`, as users call it.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SLOTS, SLEEPS = 64, 640


def durations(n: int) -> np.ndarray:
    """Log-normal, mean 1 s, sigma 1: the same for all."""
    return np.random.default_rng(0).lognormal(-0.5, 1.0, n)


def utilization(started: np.ndarray, seconds: np.ndarray, slots: int) -> dict[str, float]:
    """Busy share of the slots between the first and the last start, and over the whole span beside the ideal."""
    begin, last, end = started.min(), started.max(), (started + seconds).max()
    busy = (np.minimum(started + seconds, last) - started).clip(0).sum()
    free = np.zeros(slots)
    for length in seconds[np.argsort(started)]:
        i = free.argmin()
        free[i] += length
    return {
        "utilization": busy / (slots * (last - begin)),
        "whole_span": seconds.sum() / (slots * (end - begin)),
        "whole_span_of_ideal_greedy": seconds.sum() / (slots * free.max()),
    }


def gaps(started: np.ndarray, seconds: np.ndarray, worker: np.ndarray) -> float:
    """Median time between the end of a simulation and the start of the next one on its worker, in seconds."""
    found: list[float] = []
    for name in np.unique(worker):
        own = worker == name
        starts, ends = np.sort(started[own]), np.sort(started[own] + seconds[own])
        # With k slots, start i + k takes the place that end i left.
        k = int(max((starts[:, None] >= starts).sum(1) - (starts[:, None] > ends).sum(1)))
        found += (starts[k:] - ends[: len(starts) - k]).tolist()
    return float(np.median(np.array(found).clip(0)))


def _campaign(
    simulate: Callable[..., Any], n: int, folder: Path, slots: int, method: str, growth: float = 0.5, **options: Any
) -> Any:
    import ray
    import torch

    from orchestrator import Campaign

    if slots != 2:
        ray.init(num_cpus=slots + 1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    return Campaign(
        simulate,
        prior,
        budget=n,
        directory=folder / "run",
        acquisition={"method": method, "growth": growth},
        calibration={"share": 0.0},
        tracking={"enabled": False},
        **options,
    )


class _Meter(threading.Thread):
    """Resident memory of this process, and processor time of all its threads and of the loop's alone."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.samples: list[tuple[float, float, float, float]] = []
        self._loop = time.pthread_getcpuclockid(threading.main_thread().ident or 0)

    def run(self) -> None:
        import psutil

        process = psutil.Process()
        while True:
            loop = time.clock_gettime(self._loop)
            others = time.process_time() - time.thread_time()  # what this thread takes is not the driver's
            self.samples.append((time.time(), process.memory_info().rss / 2**20, others, loop))
            time.sleep(0.1)


def _ours(
    launched: float, simulate: Callable[..., Any], n: int, slots: int, method: str, **options: Any
) -> dict[str, float]:
    from orchestrator.store import SimulationStore

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        campaign = _campaign(simulate, n, folder, slots, method, **options)
        meter = _Meter()
        meter.start()
        count = campaign.run(progress=False) and n if method == "default" else campaign.simulate(progress=False)
        ended = time.time()
        table = SimulationStore(folder / "run" / "simulations").read(["started", "seconds", "worker", "status"])
        started = table["started"].to_numpy().astype("datetime64[us]").astype(np.int64) / 1e6
        seconds, worker = table["seconds"].to_numpy(), table["worker"].to_numpy()
        assert len(started) == count == n, (len(started), count, n)
        assert set(table["status"].unique().to_pylist()) == {"ok"}
    samples = [s for s in meter.samples if started.min() <= s[0] <= (started + seconds).max()]
    after = [s[1] for s in samples if s[0] >= started.min() + 0.2 * (ended - started.min())]
    result = {
        "first_simulation_s": started.min() - launched,
        "simulations_per_s": n / (ended - started.min()),
        "loop_ms_per_simulation": 1e3 * (samples[-1][3] - samples[0][3]) / n if samples else float("nan"),
        "process_ms_per_simulation": 1e3 * (samples[-1][2] - samples[0][2]) / n if samples else float("nan"),
        "driver_memory_change_mib": max(after) - after[0] if after else float("nan"),
        **utilization(started, seconds, slots),
    }
    if n < 10_000:
        result["median_gap_ms"] = 1e3 * gaps(started, seconds, worker)
    return result


def sleeping_64(launched: float) -> dict[str, float]:
    """640 log-normal sleeps on 64 slots, trainer and acquisition active; simulating does not wait for models."""
    lengths = durations(SLEEPS)

    def simulate(theta: np.ndarray, seed: int) -> np.ndarray:
        time.sleep(lengths[seed % SLEEPS])
        return theta + 0.3 * np.random.default_rng(seed).normal(size=2)

    # The final training is not what is measured here.
    learner = {"refine_epochs": 2, "posterior_epochs": 1, "pairs": 2000, "bank": 16}
    # Ten seconds of simulating would wait for models that take longer, were it not told to run ahead of them.
    return _ours(launched, simulate, SLEEPS, SLOTS, "default", growth=100.0, learner=learner)


def sleeping_64_alone(launched: float) -> dict[str, float]:
    """The same without models: what the pool itself costs."""
    lengths = durations(SLEEPS)

    def simulate(theta: np.ndarray, seed: int) -> np.ndarray:
        time.sleep(lengths[seed % SLEEPS])
        return theta

    return _ours(launched, simulate, SLEEPS, SLOTS, "prior")


def sleeping_2(launched: float) -> dict[str, float]:
    """1,000 sleeps of 20 ms on 2 slots."""

    def simulate(theta: np.ndarray) -> np.ndarray:
        time.sleep(0.02)
        return theta

    return _ours(launched, simulate, 1000, 2, "prior", learner={"cpus": 0})


def cheap(launched: float) -> dict[str, float]:
    """A plain numpy function, one theta at a time, to the Parquet store."""

    def simulate(theta: np.ndarray) -> np.ndarray:
        return theta + np.random.normal(size=2)

    return _ours(launched, simulate, 2_000_000, 2, "prior", learner={"cpus": 0})


def cheap_batched(launched: float) -> dict[str, float]:
    """The same for an array of theta."""

    def simulate(theta: np.ndarray) -> np.ndarray:
        return theta + np.random.normal(size=theta.shape)

    options = {"learner": {"cpus": 0}, "simulator_options": {"batched": True}}
    return _ours(launched, simulate, 10_000_000, 2, "prior", **options)


CASES = {f.__name__: f for f in (sleeping_64, sleeping_64_alone, sleeping_2, cheap, cheap_batched)}
TARGETS = {
    ("sleeping_64", "utilization"): ">= 0.985",
    ("sleeping_64", "first_simulation_s"): "<= 15",
    ("sleeping_64", "median_gap_ms"): "<= 5",
    ("sleeping_64_alone", "loop_ms_per_simulation"): "<= 1",
    ("sleeping_64", "loop_ms_per_simulation"): "<= 1",
    ("sleeping_64_alone", "process_ms_per_simulation"): "<= 1",
    ("sleeping_64", "process_ms_per_simulation"): "<= 1",
    ("sleeping_2", "utilization"): ">= 0.95",
    ("sleeping_2", "first_simulation_s"): "<= 15",
    ("cheap", "simulations_per_s"): ">= 50,000",
    ("cheap", "driver_memory_change_mib"): "<= 50",
    ("cheap_batched", "simulations_per_s"): ">= 500,000",
    ("cheap_batched", "driver_memory_change_mib"): "<= 50",
}


def peers() -> None:
    """The peers that are installed, at the same tasks."""
    from benchmarks import pool_peers

    for peer in pool_peers.PEERS:
        for name, lengths, slots in (
            ("sleeping_64", durations(SLEEPS), SLOTS),
            ("sleeping_2", np.full(1000, 0.02), 2),
        ):
            try:
                spans = pool_peers.sleeping(peer, lengths, slots)
                print(
                    f"{name}  {peer}",
                    {k: round(v, 4) for k, v in utilization(spans.started, spans.seconds, slots).items()},
                )
            except Exception as error:
                print(f"{name}  {peer}: {error}")
        # falcon-sbi puts and gets every simulation, also in a batch.
        for batched, n in ((False, 20_000), (True, 20_000 if peer == "falcon-sbi" else 2_000_000)):
            try:
                rate = pool_peers.cheap(peer, n, 2, batched)
                print(f"cheap{'_batched' if batched else ''}  {peer}: {rate:,.0f} simulations/s", flush=True)
            except Exception as error:
                print(f"cheap{'_batched' if batched else ''}  {peer}: {error}", flush=True)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", default=",".join([*CASES, "peers"]), help="comma-separated")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        name, launched = arguments.one.split("@")
        print(json.dumps(CASES[name](float(launched))))
        return
    for name in arguments.cases.split(","):
        if name == "peers":
            peers()
            continue
        command = [sys.executable, "-m", "benchmarks.pool", "--one", f"{name}@{time.time()}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=600, check=False)
        print(f"\n{name}: {CASES[name].__doc__}")
        if done.returncode:
            print(f"  failed with exit code {done.returncode}")
            continue
        for key, value in json.loads(done.stdout.splitlines()[-1]).items():
            print(f"  {key:32s} {value:14,.4f}  {TARGETS.get((name, key), '')}", flush=True)


if __name__ == "__main__":
    main()
