r"""Gaussian linear: the mean of a Gaussian in ten dimensions, under a conjugate prior.

.. math:: \theta \sim N(0, 0.1 I), \qquad x \mid \theta \sim N(\theta, 0.1 I), \qquad \theta, x \in R^{10}

Every tempered posterior is known:

.. math:: p_\beta(\theta \mid x) = N\left(\frac{\beta}{1 + \beta} x, \frac{0.1}{1 + \beta} I\right)

Lueckmann et al. (2021), arXiv 2101.04653, task T.1. All quantities are without units.
"""

from __future__ import annotations

__all__ = ["TASK", "log_density", "sample"]

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, Independent, Normal

from simulators.tasks.task import Task

DIM = 10

#: Standard deviation of prior and noise: the benchmark's 0.1 is a variance.
SCALE = 0.1**0.5


def sample(theta: Tensor, generator: Generator | None) -> Tensor:
    """theta `(n, 10)` to x `(n, 10)`."""
    return theta + SCALE * torch.randn(theta.shape, generator=generator, dtype=theta.dtype)


def log_density(theta: Tensor, x: Tensor) -> Tensor:
    """theta `(n, 10)` and x `(n, 10)` to `log p(x | theta)`, `(n,)`."""
    noise: Distribution = Normal(theta, SCALE)
    return noise.log_prob(x).sum(-1)


TASK = Task(
    name="gaussian_linear",
    parameters=tuple(f"mean_{i}" for i in range(1, DIM + 1)),
    prior=Independent(Normal(torch.zeros(DIM), SCALE * torch.ones(DIM)), 1),
    dim_x=DIM,
    sampler=sample,
    log_density=log_density,
)
