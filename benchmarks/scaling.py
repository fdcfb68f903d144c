"""Planning beyond this machine: a recorded trace of durations through the real loop, with slots that only count.

`python -m benchmarks.scaling` replays `benchmarks/trace.npy` (seconds of a stochastic epidemic, recorded with
`--record`, scaled to a mean of 60 s) through `SimulationLoop`, `SimulationPool`, the journal and the store. Only the
slots are simulated: the clock is the real one, plus the time that is skipped while the loop waits. So all that the loop
itself costs on this machine counts; what a remote call costs is added for each task and each answer.
"""

from __future__ import annotations

import argparse
import heapq
import math
import tempfile
import threading
import time
from collections import deque
from pathlib import Path

import numpy as np
import torch

from learners.whitening_choice import whiten
from orchestrator.acquisition import IntegratedVariance
from orchestrator.config_learner import AcquisitionConfig
from orchestrator.executor import Ended, Lost
from orchestrator.journal import ProposalJournal
from orchestrator.loop import SimulationLoop
from orchestrator.pacing import Goal
from orchestrator.pool import SimulationPool
from orchestrator.proposal import Proposals
from orchestrator.proposer import Proposer
from orchestrator.store import SimulationStore
from orchestrator.supervisor import TrainerSupervisor
from simulators.outcome import Outcomes, Status

TRACE = Path(__file__).with_name("trace.npy")
MEAN_SECONDS = 60.0
#: Of this program's time: a call of a Ray actor from one client, measured on 2 cores (see RESULTS.md).
CALL_SECONDS = 0.0005
#: From a slot to this program and back.
TRIP_SECONDS = 0.002


class CountingSlots:
    """An `Executor` whose simulations take the seconds of a trace, on a clock that skips what nobody waits for."""

    def __init__(self, slots: int, seconds: np.ndarray) -> None:
        self.slots, self.widest, self._seconds = slots, 16, seconds
        self._begin, self._skipped = time.perf_counter(), 0.0
        self._free = slots
        self._queue: deque[tuple[int, int, float]] = deque()
        self._ends: list[tuple[float, float, int, int]] = []
        self._delay, self._left = 0.02, self.now()
        self.starts: list[float] = []
        self.lengths: list[float] = []

    def now(self) -> float:
        """Seconds on the clock."""
        return time.perf_counter() - self._begin + self._skipped

    def room(self, seconds: float | None) -> int:
        """As on Ray: a task ahead for each host, and what ends before this program looks again."""
        ahead = 0.0 if seconds is None else min(1.0, 2 * self._delay / max(seconds, 1e-3))
        return max(
            0, self.slots + self.slots // 16 + math.ceil(ahead * self.slots) - len(self._ends) - len(self._queue)
        )

    def warm_up(self, timeout: float) -> bool:
        """Always ready."""
        return True

    def start(self, task: int, theta: np.ndarray, seeds: np.ndarray, share: int, alone: bool) -> None:
        """Queues a task."""
        self._skipped += CALL_SECONDS
        self._queue.append((task, len(theta), float(self._seconds[seeds % len(self._seconds)].sum())))
        self._fill(self.now() + TRIP_SECONDS)

    def wait(self, timeout: float) -> list[Ended | Lost]:
        """What has ended; skips to the next end, or to the end of the timeout."""
        self._delay = min(0.5, max(0.02, 0.9 * self._delay, self.now() - self._left))
        limit = self.now() + timeout
        due = min(self._ends[0][0] + TRIP_SECONDS if self._ends else limit, limit)
        self._skipped += max(0.0, due - self.now())
        ended: list[Ended | Lost] = []
        while self._ends and self._ends[0][0] <= self.now():
            end, seconds, task, n = heapq.heappop(self._ends)
            self._skipped += CALL_SECONDS
            self._free += 1
            self._fill(end)
            columns = np.full(n, end), np.full(n, seconds / n)
            values = np.zeros(n)
            status = np.full(n, Status.OK.code, dtype=np.uint8)
            ended.append(Ended(task, Outcomes(status, np.ones(n, dtype=np.int64), values, *columns, {}), "", seconds))
        self._left = self.now()
        return ended

    def recall(self) -> None:
        """Nobody asks for it here."""

    def stop(self) -> None:
        """Forgets everything."""
        self._queue.clear()
        self._ends.clear()

    def _fill(self, moment: float) -> None:
        while self._free and self._queue:
            task, n, seconds = self._queue.popleft()
            self._free -= 1
            self.starts.append(moment)
            self.lengths.append(seconds)
            heapq.heappush(self._ends, (moment + seconds, seconds, task, n))


def replay(slots: int, simulations: int, folder: Path) -> dict[str, float]:
    """Runs the loop to its end; utilization between the first and the last start, and the loop's own cost."""
    prior = torch.distributions.MultivariateNormal(torch.zeros(8), torch.eye(8))
    trace = np.load(TRACE)
    executor = CountingSlots(slots, trace * MEAN_SECONDS / trace.mean())
    store, journal = SimulationStore(folder / "simulations"), ProposalJournal(folder / "pending.arrows")
    journal.rotate(Proposals.none(8))
    config = AcquisitionConfig(method="prior")
    loop = SimulationLoop(
        SimulationPool(executor, retries=1),
        store,
        journal,
        TrainerSupervisor(lambda: None, store, at_once=False),
        Proposer(prior, whiten(prior), config, seed=0, next_id=0, acquisition=IntegratedVariance(), targeted=False),
        config,
        None,
        None,
        None,
        0.0,
        threading.Event(),
        lambda: None,
        lambda snapshot: None,
    )
    real, used = time.perf_counter(), time.process_time()
    loop.train_and_simulate(Goal(simulations, simulations))
    real, used = time.perf_counter() - real, time.process_time() - used
    loop.close()
    assert len(store) == simulations
    starts, lengths = np.array(executor.starts), np.array(executor.lengths)
    first, last = starts.min(), starts.max()
    busy = (np.minimum(starts + lengths, last) - starts).clip(0).sum()
    return {
        "utilization": busy / (slots * (last - first)),
        "simulated_s": last - first,
        "real_s": real,
        "loop_ms_per_simulation": 1e3 * used / simulations,
    }


def epidemic(theta: np.ndarray, seed: int) -> np.ndarray:
    """A stochastic SIR epidemic by Gillespie's method among 2,000 people; how long it takes depends on theta."""
    rng = np.random.default_rng(seed)
    infection, recovery = np.exp(theta[0]), np.exp(theta[1])
    s, i, t = 1990, 10, 0.0
    peak = i
    while i > 0 and t < 100:
        up, down = infection * s * i / 2000, recovery * i
        t += rng.exponential(1 / (up + down))
        if rng.random() < up / (up + down):
            s, i = s - 1, i + 1
        else:
            i -= 1
        peak = max(peak, i)
    return np.array([2000.0 - s, peak, t])


def record() -> None:
    """Records the trace: real durations of 2,000 epidemics."""
    from orchestrator import Campaign

    prior = torch.distributions.MultivariateNormal(torch.tensor([-0.5, -1.5]), 0.25 * torch.eye(2))
    with tempfile.TemporaryDirectory() as folder:
        options = {"acquisition": {"method": "prior"}, "calibration": {"share": 0.0}, "tracking": {"enabled": False}}
        Campaign(epidemic, prior, budget=2000, directory=folder, **options).simulate(progress=False)
        np.save(TRACE, SimulationStore(Path(folder) / "simulations").read(["seconds"])["seconds"].to_numpy())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="record benchmarks/trace.npy anew")
    parser.add_argument("--slots", default="100,1000,10000", help="comma-separated")
    parser.add_argument("--waves", type=int, default=10, help="simulations a slot")
    arguments = parser.parse_args()
    if arguments.record:
        record()
    trace = np.load(TRACE)
    print(f"trace: {len(trace)} durations, coefficient of variation {trace.std() / trace.mean():.2f}")
    for slots in map(int, arguments.slots.split(",")):
        with tempfile.TemporaryDirectory() as folder:
            result = replay(slots, slots * arguments.waves, Path(folder))
        target = "  (target: utilization >= 0.95)" if slots == 10_000 else ""
        print(f"{slots} slots:", {key: round(float(value), 4) for key, value in result.items()}, target, flush=True)


if __name__ == "__main__":
    main()
