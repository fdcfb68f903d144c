r"""falcon-sbi as an arm of `benchmarks.acquisition`: sequential inference for one observation, knowing beta = 1 only.

    draw = falcon("two_moons", observed("two_moons", 1), budget=1000, seed=1)

Its `Flow` estimator learns q(theta | x) and the marginal q(theta) of the same simulations while these are being bought,
theta first from the prior and then from a widened estimate at the observation, and corrects for that at the end:

.. math:: \tilde p(\theta) \propto q(\theta \mid x_o)^{\gamma / (1 + \gamma)}, \qquad
    p(\theta \mid x_o) \propto q(\theta \mid x_o) \, p(\theta) / q(\theta)

Weniger (2024), "Falcon: Distributed Dynamic Simulation-Based Inference", https://github.com/cweniger/falcon.
"""

from __future__ import annotations

__all__ = ["falcon"]

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LogNormal, Normal, Uniform

from benchmarks.problem import DRAWS
from simulators import get_task

# The shares of falcon's 02_bimodal/config_regular.yml, whose buffer grows from a fourth of its samples to all of them.
_INITIAL, _VALIDATION = 0.25, 0.1
_EPOCHS = 200  # With all simulations, after some 100 while they are bought: the examples' 300.
_ENDLESS = 10**6
_CHUNK = 64  # Simulations of a round, and draws at a time: each draw is chosen among 256 of the flow.


class _Simulator:
    """The node x; a line of the file `bought` holds the number of simulations of one call."""

    def __init__(self, task: str, logs: bool, seed: int, bought: Path) -> None:
        self.task, self.logs, self.seed, self.bought, self.calls = task, logs, seed, bought, 0

    def simulate_batch(self, n: int, theta: np.ndarray) -> np.ndarray:
        with self.bought.open("a") as file:
            file.write(f"{n}\n")
        given = torch.tensor(theta, dtype=torch.float64)
        x = get_task(self.task).simulate(given.exp() if self.logs else given, 1000 * self.seed + self.calls)
        self.calls += 1
        return x.numpy()


def falcon(task: str, x_o: Tensor, budget: int, seed: int) -> Callable[[float], Tensor | None]:
    """falcon-sbi's sequential neural posterior estimation with exactly `budget` simulations.

    `draw(beta)` gives `(DRAWS, d)` float32 draws of theta at beta = 1, None at any other beta.

    The estimator is that of falcon's examples 01_minimal and 02_bimodal: a neural spline flow behind a running
    normalization of x. The seed decides first weights, batches and simulations, but the latter are bought by the clock
    while the flow trains, so two runs differ.

    Raises:
        RuntimeError: Not `budget` simulations were run.
    """
    with tempfile.TemporaryDirectory() as folder:
        bought = Path(folder) / "bought"
        theta = _posterior(task, x_o, budget, seed, bought)
        used = _used(bought)
    if used != budget:
        raise RuntimeError(f"falcon ran {used} simulations, but was to run {budget}")
    return lambda beta: theta if beta == 1.0 else None


def _posterior(task: str, x_o: Tensor, budget: int, seed: int, bought: Path) -> Tensor:
    import ray
    from falcon import DeployedGraph, Graph, get_ray_dataset_manager
    from falcon.embeddings import RunningNorm, apply
    from falcon.estimators import Flow
    from falcon.priors import Product

    marginals, logs = _marginals(get_task(task).prior)
    estimator = Flow(
        max_epochs=_ENDLESS,
        net_type="nsf",
        # A count that is zero in a whole batch has no variance to divide by.
        embedding=apply(RunningNorm, "x", epsilon=1e-2, output_dtype="float32"),
        norm_momentum=0.003,
        lr_decay_factor=0.5,
        lr_patience=16,
        # The validation loss rises at first, when few simulations are learned by heart; most are unbought then.
        early_stop_patience=_ENDLESS,
        # What is discarded is simulated anew, without bound.
        discard_samples=False,
        device="cpu",
    )
    graph = Graph()
    graph.add_node("theta", Product(marginals), estimator, evidence=["x"], sample_chunk_size=_CHUNK)
    graph.add_node("x", _Simulator(task, logs, seed, bought), parents=["theta"], observed=x_o.float().numpy())
    validation = round(_VALIDATION * budget)
    buffer = {
        "min_samples": round(_INITIAL * budget) - validation,
        "max_samples": budget - validation,
        "validation_samples": validation,
        "simulate_count": _CHUNK,
        "simulate_interval": 1.0,
        "simulate_chunk_size": 0,
        "simulate_when_full": False,
        "initial_samples_path": None,
        "snapshot_every": 0,
    }
    quiet: dict[str, Any] = {"local": {"enabled": False}}
    observation = {"x": x_o.float()[None]}
    with contextlib.redirect_stdout(io.StringIO()):
        ray.init(
            address="local",
            num_cpus=3,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(bought.parent),
        )
        try:
            deployed = DeployedGraph(graph, log_config=quiet)
            ray.get(deployed.wrapped_nodes_dict["theta"].__ray_call__.remote(lambda _: _seed(seed)))
            manager = get_ray_dataset_manager(buffer, log_config=quiet)
            deployed.launch(manager, observation, stop_check=_trained(deployed, bought, budget))
            rows = deployed.sample_posterior(DRAWS, observation)
            theta = torch.tensor(np.stack(ray.get([row["theta.value"] for row in rows])))
        finally:
            ray.shutdown()
    return (theta.exp() if logs else theta).float()


def _used(bought: Path) -> int:
    return sum(map(int, bought.read_text().split()))


def _trained(deployed: Any, bought: Path, budget: int) -> Callable[[], bool]:
    """Whether the flow has seen `_EPOCHS` epochs since the last simulation was bought."""
    first: int | None = None

    def stop() -> bool:
        nonlocal first
        if _used(bought) < budget:
            return False
        epoch: int | None = deployed.get_status()["nodes"]["theta"].get("current_epoch")
        if epoch is None:  # It was too busy to answer.
            return False
        first = epoch if first is None else first
        return epoch - first >= _EPOCHS

    return stop


def _seed(seed: int) -> None:
    torch.manual_seed(seed)


def _marginals(prior: Distribution) -> tuple[list[tuple[str, float, float]], bool]:
    """The prior in falcon's terms, and whether it is one over log theta: falcon has no log-normal for its `Flow`."""
    base = prior.base_dist if isinstance(prior, Independent) else prior
    match base:
        case Uniform():
            name, first, second = "uniform", base.low, base.high
        case Normal() | LogNormal():
            name, first, second = "normal", base.loc, base.scale
        case _:
            raise ValueError(f"falcon has no prior like {prior}")
    return [(name, a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)], isinstance(base, LogNormal)
