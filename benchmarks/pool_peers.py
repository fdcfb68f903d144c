"""The peers of the pool's benchmark: the same simulations through sbi, libEnsemble, Ray and falcon-sbi.

    spans = sleeping("libensemble", durations, slots=64)          # wall clock spans, measured inside the simulator
    rate = cheap("sbi", n=100_000, workers=2, batched=True)       # simulations per second, results in memory

Every peer runs the way its documentation recommends, with its workers started before the clock where it lets them stay.
Every call has a process of its own, so that one peer's clusters and pools do not disturb the next, and a hang ends.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 1_000  # Simulations in a call when a peer is given batches.
START_LIMIT = 300.0  # Seconds a peer may take to start its workers; 64 processes that import torch need a while.
CHEAP_LIMIT = 600.0


class PeerError(RuntimeError):
    """A peer that is not installed, raised, or did not come back in time; the message says which."""


@dataclass(frozen=True)
class Spans:
    """Start (seconds since the epoch) and duration of each simulation, in the order of the given durations."""

    started: np.ndarray
    seconds: np.ndarray


@dataclass(frozen=True)
class Peer:
    """A system that runs simulations, by the module and the distribution that bring it."""

    module: str
    distribution: str
    sleeping: Callable[[np.ndarray, int], np.ndarray]  # (durations, slots) -> rows of (started, seconds)
    cheap: Callable[[int, int, bool], float]  # (n, workers, batched) -> simulations per second

    def missing(self) -> str | None:
        """Why it cannot run here; None if it can."""
        if find_spec(self.module) is None:
            return f"not installed: {self.distribution} comes with the bench extra, pip install -e '.[bench]'"
        return None


# ------------------------------------------------------------------ the two simulators


def sleep(seconds: float) -> tuple[float, float]:
    """A costly simulator: its own start (wall clock) and duration."""
    started, clock = time.time(), time.perf_counter()
    time.sleep(seconds)
    return started, time.perf_counter() - clock


def noisy(theta: np.ndarray) -> np.ndarray:
    """A cheap simulator: x = theta + noise, for one theta or an array of them."""
    return theta + np.random.normal(size=theta.shape)


def thetas(n: int) -> np.ndarray:
    """(n, 2) parameters."""
    return np.random.default_rng(0).normal(size=(n, 2))


def until_warm(round_of_pids: Callable[[], set[int]], slots: int) -> None:
    """Repeat rounds of short simulations until as many processes as there are slots have answered."""
    deadline = time.monotonic() + START_LIMIT
    seen: set[int] = set()
    while len(seen) < slots:
        if time.monotonic() > deadline:
            raise PeerError(f"{len(seen)} of {slots} worker processes were up after {START_LIMIT:.0f} s")
        seen |= round_of_pids()


# ------------------------------------------------------------------ sbi


class Given:
    """A proposal that yields the given parameters in their order, for sbi."""

    def __init__(self, theta: np.ndarray) -> None:
        self.theta = theta

    def sample(self, shape: tuple[int, ...]) -> Any:
        import torch

        return torch.as_tensor(self.theta[: shape[0]])


def sbi_simulate(simulator: Callable[[np.ndarray], np.ndarray], theta: np.ndarray, workers: int, batch: int) -> Any:
    from sbi.utils.simulation_utils import simulate_for_sbi

    def on_batch(batch: np.ndarray) -> Any:  # With workers, sbi gives arrays and wants tensors.
        import torch

        return torch.as_tensor(simulator(np.asarray(batch)))

    return simulate_for_sbi(
        on_batch,
        Given(theta),
        len(theta),
        num_workers=workers,
        simulation_batch_size=batch,
        show_progress_bar=False,
    )[1]


def sbi_warm(workers: int) -> None:
    """sbi's workers are joblib's, which stay for the next call of the same size."""

    def pid(batch: np.ndarray) -> np.ndarray:
        time.sleep(0.5)
        return np.full((len(batch), 1), os.getpid())

    until_warm(lambda: set(sbi_simulate(pid, np.zeros((workers, 1)), workers, 1)[:, 0].tolist()), workers)


def sbi_sleeping(durations: np.ndarray, slots: int) -> np.ndarray:
    sbi_warm(slots)
    spans = sbi_simulate(lambda batch: np.array([sleep(s) for s in batch[:, 0]]), durations[:, None], slots, 1)
    return spans.numpy()


def sbi_cheap(n: int, workers: int, batched: bool) -> float:
    sbi_warm(workers)
    theta = thetas(n)
    clock = time.perf_counter()
    x = sbi_simulate(noisy, theta, workers, BATCH if batched else 1)
    rate = n / (time.perf_counter() - clock)
    assert x.shape == theta.shape
    return rate


# ------------------------------------------------------------------ libEnsemble


def libensemble_run(
    points: np.ndarray,
    sim_f: Callable[[np.ndarray], np.ndarray],
    out: list[tuple[Any, ...]],
    workers: int,
    batched: bool,
) -> np.ndarray:
    """libEnsemble's history after it has run `sim_f` on all points of one generator call."""
    from libensemble.alloc_funcs import fast_alloc, give_sim_work_first
    from libensemble.libE import libE

    fields = [(name, points.dtype[name].base, points.dtype[name].shape) for name in points.dtype.names or ()]
    # Points of the same priority are libEnsemble's batches; its quicker allocation gives points in order, one by one.
    alloc = give_sim_work_first if batched else fast_alloc
    history, _, flag = libE(
        {"sim_f": sim_f, "in": ["theta"], "out": out},
        {"gen_f": lambda _H, _info, _specs: points, "in": [], "out": fields},
        {"sim_max": len(points)},
        persis_info={"next_to_give": 0, "total_gen_calls": 0},
        alloc_specs={
            "alloc_f": alloc.give_sim_work_first,
            "user": {"num_active_gens": 1, "give_all_with_same_priority": batched},
        },
        libE_specs={
            "comms": "local",
            "nworkers": workers,
            "disable_log_files": True,
            "save_H_on_completion": False,
        },
    )
    if flag != 0 or not history["sim_ended"].all():
        raise PeerError(f"libEnsemble ended with flag {flag}, {history['sim_ended'].sum()} of {len(points)} points")
    return history


def libensemble_sleeping(durations: np.ndarray, slots: int) -> np.ndarray:
    points = np.zeros(len(durations), dtype=[("theta", float, (1,))])
    points["theta"][:, 0] = durations

    def sim_f(rows: np.ndarray) -> np.ndarray:
        out = np.zeros(len(rows), dtype=[("span", float, (2,))])
        out["span"] = [sleep(s) for s in rows["theta"][:, 0]]
        return out

    return libensemble_run(points, sim_f, [("span", float, (2,))], slots, batched=False)["span"]


def libensemble_cheap(n: int, workers: int, batched: bool) -> float:
    """From the first simulation given to the last received: the start of its processes is part of the call."""
    points = np.zeros(n, dtype=[("theta", float, (2,))] + [("priority", float)] * batched)
    points["theta"] = thetas(n)
    if batched:
        points["priority"] = -(np.arange(n) // BATCH)

    def sim_f(rows: np.ndarray) -> np.ndarray:
        out = np.zeros(len(rows), dtype=[("x", float, (2,))])
        out["x"] = noisy(rows["theta"])
        return out

    history = libensemble_run(points, sim_f, [("x", float, (2,))], workers, batched)
    return n / (history["sim_ended_time"].max() - history["sim_started_time"].min())


# ------------------------------------------------------------------ Ray


def ray_start(slots: int, module: str = "numpy") -> None:
    """A cluster of its own with `slots` logical CPUs, and a worker process with `module` imported for each of them."""
    import ray

    ray.init(address="local", num_cpus=slots, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    ray_warm(slots, module)


def ray_warm(slots: int, module: str) -> None:
    import ray

    @ray.remote(num_cpus=1)
    def pid() -> int:
        __import__(module)
        time.sleep(0.5)
        return os.getpid()

    until_warm(lambda: set(ray.get([pid.remote() for _ in range(slots)])), slots)


def ray_chunks(n: int, batched: bool) -> list[np.ndarray]:
    theta = thetas(n)
    return np.array_split(theta, max(1, n // BATCH)) if batched else list(theta)


def ray_tasks_sleeping(durations: np.ndarray, slots: int) -> np.ndarray:
    import ray

    ray_start(slots)
    task = ray.remote(num_cpus=1)(sleep)
    return np.array(ray.get([task.remote(s) for s in durations.tolist()]))


def ray_tasks_cheap(n: int, workers: int, batched: bool) -> float:
    import ray

    ray_start(workers)
    task = ray.remote(num_cpus=1)(noisy)
    ray.get([task.remote(np.zeros(2)) for _ in range(workers)])  # The function reaches the workers.
    chunks = ray_chunks(n, batched)
    clock = time.perf_counter()
    x = np.vstack(ray.get([task.remote(theta) for theta in chunks]))
    rate = n / (time.perf_counter() - clock)
    assert x.shape == (n, 2)
    return rate


def ray_actor_pool(workers: int) -> Any:
    """A pool of actors that are up: each has answered once."""
    import ray
    from ray.util import ActorPool

    class Simulator:
        def sleep(self, index: int, seconds: float) -> tuple[int, float, float]:
            return (index, *sleep(seconds))

        def noisy(self, index: int, theta: np.ndarray) -> tuple[int, np.ndarray]:
            return index, noisy(theta)

    ray_start(workers)
    actor_class: Any = ray.remote(num_cpus=1)(Simulator)
    actors = [actor_class.remote() for _ in range(workers)]
    ray.get([actor.sleep.remote(0, 0.0) for actor in actors])
    return ActorPool(actors)


def ray_actors_sleeping(durations: np.ndarray, slots: int) -> np.ndarray:
    pool = ray_actor_pool(slots)
    spans = pool.map_unordered(lambda actor, item: actor.sleep.remote(*item), list(enumerate(durations.tolist())))
    return np.array(sorted(spans))[:, 1:]


def ray_actors_cheap(n: int, workers: int, batched: bool) -> float:
    pool = ray_actor_pool(workers)
    items = list(enumerate(ray_chunks(n, batched)))
    clock = time.perf_counter()
    results = list(pool.map_unordered(lambda actor, item: actor.noisy.remote(*item), items))
    x = np.vstack([x for _, x in sorted(results, key=lambda result: result[0])])
    rate = n / (time.perf_counter() - clock)
    assert x.shape == (n, 2)
    return rate


# ------------------------------------------------------------------ falcon-sbi


class FalconPrior:
    """The parent node; its values are always given."""

    def simulate_batch(self, n: int) -> np.ndarray:
        return np.zeros((n, 1))


class FalconSleep:
    def simulate(self, theta: np.ndarray) -> np.ndarray:
        return np.array(sleep(float(theta[0])))


class FalconNoisy:
    def simulate(self, theta: np.ndarray) -> np.ndarray:
        return noisy(theta)


class FalconNoisyBatch:
    def simulate_batch(self, n: int, theta: np.ndarray) -> np.ndarray:
        return noisy(theta)


def falcon_graph(simulator: object, actors: int) -> Callable[[np.ndarray], np.ndarray]:
    """x of a graph theta -> x that is deployed on Ray with `actors` actors for x."""
    import ray
    from falcon import DeployedGraph, Graph

    # One logical CPU a node's actor, the multiplexer and the parent node. falcon-sbi gives up after 60 s of waiting for
    # its actors, which 64 imports of torch exceed on a few cores: they take over processes that have it already.
    ray_start(actors + 2, "falcon.core.deployed_graph")
    graph = Graph().add_node("theta", FalconPrior()).add_node("x", simulator, parents=["theta"], num_actors=actors)
    deployed = DeployedGraph(graph)

    def sample(theta: np.ndarray) -> np.ndarray:
        refs = deployed.sample(len(theta), conditions={"theta": theta})
        return np.stack(ray.get([row["x.value"] for row in refs]))

    return sample


def falcon_sleeping(durations: np.ndarray, slots: int) -> np.ndarray:
    sample = falcon_graph(FalconSleep(), slots)
    sample(np.zeros((slots, 1)))
    return sample(durations[:, None])


def falcon_cheap(n: int, workers: int, batched: bool) -> float:
    sample = falcon_graph(FalconNoisyBatch() if batched else FalconNoisy(), workers)
    sample(thetas(workers))
    theta = thetas(n)
    clock = time.perf_counter()
    x = sample(theta)
    rate = n / (time.perf_counter() - clock)
    assert x.shape == theta.shape
    return rate


PEERS: dict[str, Peer] = {
    "sbi": Peer("sbi", "sbi", sbi_sleeping, sbi_cheap),
    "libensemble": Peer("libensemble", "libensemble", libensemble_sleeping, libensemble_cheap),
    "ray-tasks": Peer("ray", "ray", ray_tasks_sleeping, ray_tasks_cheap),
    "ray-actors": Peer("ray", "ray", ray_actors_sleeping, ray_actors_cheap),
    "falcon-sbi": Peer("falcon", "falcon-sbi", falcon_sleeping, falcon_cheap),
}


# ------------------------------------------------------------------ a process for each call


def sleeping(peer: str, durations: np.ndarray, slots: int) -> Spans:
    """`len(durations)` simulations that sleep for the given seconds, on `slots` slots of the peer.

    Raises `PeerError` if the peer is not installed, raises, or takes more than ten times as long as it could.
    """
    ideal = float(np.sum(durations)) / slots + float(np.max(durations))
    request = {"run": "sleeping", "peer": peer, "durations": np.asarray(durations, float).tolist(), "slots": slots}
    spans = np.array(in_child(request, START_LIMIT + 10 * ideal))
    if spans.shape != (len(durations), 2):
        raise PeerError(f"{peer} returned spans of shape {spans.shape} for {len(durations)} simulations")
    return Spans(started=spans[:, 0], seconds=spans[:, 1])


def cheap(peer: str, n: int, workers: int, batched: bool) -> float:
    """Simulations per second of a plain numpy function, one theta at a time or in arrays, to results in memory.

    Raises `PeerError` if the peer is not installed, raises, or takes more than ten minutes.
    """
    return float(in_child({"run": "cheap", "peer": peer, "n": n, "workers": workers, "batched": batched}, CHEAP_LIMIT))


def in_child(request: dict[str, Any], limit: float) -> Any:
    """The answer of a fresh process to `request`; nothing of it is left when this returns."""
    peer = request["peer"]
    reason = PEERS[peer].missing()
    if reason is not None:
        raise PeerError(f"{peer} is {reason}")
    with tempfile.TemporaryFile("w+") as errors, tempfile.TemporaryDirectory() as scratch:
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.pool_peers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            cwd=scratch,  # Some peers write their logs where they stand.
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
            start_new_session=True,
        ) as child:
            try:
                out, _ = child.communicate(json.dumps(request), timeout=limit)
            except subprocess.TimeoutExpired:
                raise PeerError(f"{peer} did not come back within {limit:.0f} s") from None
            finally:
                end_group(child)
        if child.returncode != 0:
            errors.seek(0)
            told = [line for line in errors.read().splitlines() if line.strip() and "(raylet)" not in line]
            last = told[-1:]  # What the cluster says of itself comes later than the reason.
            raise PeerError(f"{peer} ended with code {child.returncode}: {' '.join(last) or 'nothing on stderr'}")
    return json.loads(out)


def end_group(child: subprocess.Popen[str], grace: float = 5.0) -> None:
    """End the child with all it started; workers outlive a parent that hangs, and joblib's tracker cleans up last."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while time.monotonic() < deadline:
            child.poll()
            os.killpg(child.pid, 0)  # Raises once none is left.
            time.sleep(0.05)
        os.killpg(child.pid, signal.SIGKILL)


def answer() -> None:
    """Run the request on stdin; the answer is all that reaches stdout, whatever the peer prints."""
    stdout = os.dup(1)
    os.dup2(2, 1)
    request = json.loads(sys.stdin.read())
    peer = PEERS[request["peer"]]
    if request["run"] == "sleeping":
        result: Any = peer.sleeping(np.array(request["durations"]), request["slots"]).tolist()
    else:
        result = peer.cheap(request["n"], request["workers"], request["batched"])
    os.write(stdout, json.dumps(result).encode())


if __name__ == "__main__":
    answer()
