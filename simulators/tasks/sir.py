r"""SIR: the course of an epidemic, seen through ten small surveys.

.. math::
    \frac{dS}{dt} = -\beta \frac{S I}{N}, \quad \frac{dI}{dt} = \beta \frac{S I}{N} - \gamma I, \qquad
    N = 10^6, \quad I(0) = 1, \\
    \log \beta \sim N(\log 0.4, 0.5^2), \quad \log \gamma \sim N(\log 0.125, 0.2^2), \qquad
    x_j \sim \mathrm{Binomial}(1000, I(t_j) / N)

The rates beta and gamma are per day; the surveys ask 1000 people each on the days 0, 17, ..., 153 and
count the infected. The equations are solved in :math:`\log (S/N)` and :math:`\log (I/N)`, which keeps an
epidemic that dies out from rounding to zero or below.

Lueckmann et al. (2021), arXiv 2101.04653, task T.9 (subsampled).
"""

from __future__ import annotations

__all__ = ["TASK", "infected", "log_density", "sample"]

import math

import torch
from torch import Generator, Tensor
from torch.distributions import Binomial, Distribution, Independent, LogNormal

from simulators.tasks.runge_kutta import solve
from simulators.tasks.task import Task

POPULATION = 1e6
SURVEYED = 1000
NUM_SURVEYS = 10
DAYS_BETWEEN = 17.0

#: Steps of a quarter of a day: relative errors below 1e-5 in all of 20,000 prior draws.
NUM_STEPS = 68


def infected(theta: Tensor) -> Tensor:
    """The share I/N on the days of the surveys: theta `(n, 2)` to `(n, 10)`."""
    contact, recovery = theta.unbind(-1)

    def rate(log_shares: Tensor) -> Tensor:
        susceptible, infectious = log_shares.exp()
        return torch.stack([-contact * infectious, contact * susceptible - recovery])

    start = torch.tensor([1 - 1 / POPULATION, 1 / POPULATION], dtype=theta.dtype, device=theta.device)
    start = start.log()[:, None].expand(2, len(theta))
    return solve(rate, start, DAYS_BETWEEN, NUM_STEPS, NUM_SURVEYS)[:, 1].mT.exp()


def sample(theta: Tensor, generator: Generator | None) -> Tensor:
    """theta `(n, 2)` to counts x `(n, 10)`."""
    share = infected(theta)
    return torch.binomial(torch.full_like(share, SURVEYED), share, generator=generator)


def log_density(theta: Tensor, x: Tensor) -> Tensor:
    """theta `(n, 2)` and counts x `(n, 10)` to `log p(x | theta)`, `(n,)`."""
    survey: Distribution = Binomial(SURVEYED, infected(theta))
    return survey.log_prob(x).sum(-1)


TASK = Task(
    name="sir",
    parameters=("beta_", "gamma"),
    prior=Independent(LogNormal(torch.tensor([math.log(0.4), math.log(0.125)]), torch.tensor([0.5, 0.2])), 1),
    dim_x=NUM_SURVEYS,
    sampler=sample,
    log_density=log_density,
)
