"""What every method of the accuracy and acquisition benchmarks is given, and what it gives back."""

from __future__ import annotations

__all__ = ["DRAWS", "Fitted", "Problem", "problem", "simulations"]

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, LogNormal

from orchestrator.config_reading import load_config
from orchestrator.problem import resolve
from simulators import get_task
from simulators.loading import load_object

EXAMPLES = Path(__file__).parents[1] / "examples"
DRAWS = 2000


@dataclass(frozen=True)
class Fitted:
    """A fitted method: `draw(x, beta)` gives `(DRAWS, d)`, NaN or None where it has no answer."""

    fit_seconds: float
    draw: Callable[[Tensor, float], Tensor | None]


@dataclass(frozen=True)
class Problem:
    """A prior and a simulator `(theta (n, d), seed) -> x (n, k)`.

    Peers learn the logarithms of theta and x where those are positive and spread over orders of magnitude, which we
    find out by ourselves.
    """

    prior: Distribution
    simulate: Callable[[Tensor, int], Tensor]
    log_theta: bool = False
    log_x: bool = False


def problem(name: str) -> Problem:
    """A built-in task, or one of the examples as a user would write it."""
    if name == "bernoulli_glm":
        simulate = load_object(f"{EXAMPLES / name}.py:simulate")
        prior = load_object(f"{EXAMPLES / name}.py:PRIOR")
        return Problem(prior, lambda theta, seed: torch.tensor(simulate(theta.numpy(), seed)))
    if name == "hudson_bay":
        file = EXAMPLES / "hudson_bay.yaml"
        prior, simulate = resolve(load_config(file), EXAMPLES).prior, _one_by_one(file.with_suffix(".py"))
        return Problem(prior, simulate, log_theta=True, log_x=True)
    task = get_task(name)
    base = task.prior.base_dist if isinstance(task.prior, Independent) else None
    return Problem(task.prior, task.simulate, log_theta=isinstance(base, LogNormal))


def _one_by_one(file: Path) -> Callable[[Tensor, int], Tensor]:
    simulate = load_object(f"{file}:simulate")

    def histories(theta: Tensor, seed: int) -> Tensor:
        with np.errstate(over="ignore", under="ignore"):
            rows = [simulate(row, (seed, i)) for i, row in enumerate(theta.numpy())]
        return torch.tensor(np.array(rows))

    return histories


def simulations(task: Problem, budget: int, seed: int) -> tuple[Tensor, Tensor]:
    """`theta` `(n, d)` of the prior and their `x` `(n, k)`, the same for every method."""
    torch.manual_seed(1000 * seed + budget)
    theta = task.prior.sample(torch.Size([budget]))
    return theta, task.simulate(theta, 1000 * seed + budget)
