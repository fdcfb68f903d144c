"""What every method of the accuracy and acquisition benchmarks is given, and what it gives back."""

from __future__ import annotations

__all__ = ["DRAWS", "Fitted", "Problem", "problem", "simulations"]

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Distribution

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
    """A prior and a simulator `(theta (n, d), seed) -> x (n, k)`."""

    prior: Distribution
    simulate: Callable[[Tensor, int], Tensor]


def problem(name: str) -> Problem:
    """A built-in task, or one of the examples as a user would write it."""
    if name != "bernoulli_glm":
        task = get_task(name)
        return Problem(task.prior, task.simulate)
    module = EXAMPLES / "bernoulli_glm.py"
    simulate = load_object(f"{module}:simulate")
    return Problem(load_object(f"{module}:PRIOR"), lambda theta, seed: torch.tensor(simulate(theta.numpy(), seed)))


def simulations(task: Problem, budget: int, seed: int) -> tuple[Tensor, Tensor]:
    """`theta` `(n, d)` of the prior and their `x` `(n, k)`, the same for every method."""
    torch.manual_seed(1000 * seed + budget)
    theta = task.prior.sample(torch.Size([budget]))
    return theta, task.simulate(theta, 1000 * seed + budget)
