r"""Gaussian mixture: the common mean of a broad and a narrow Gaussian in the plane.

.. math::
    \theta \sim U(-10, 10)^2, \qquad
    x \mid \theta \sim \tfrac12 N(\theta, I) + \tfrac12 N(\theta, 0.1^2 I)

Each draw of x chooses its component anew (in the benchmark's simulator one choice serves a whole batch).

Lueckmann et al. (2021), arXiv 2101.04653, task T.7; Sisson, Fan & Tanaka (2007). All quantities are
without units.
"""

from __future__ import annotations

__all__ = ["TASK", "log_density", "sample"]

import math

import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, Normal

from simulators.tasks.task import Task, box

#: Standard deviations of the two components, which are equally likely.
SCALES = (1.0, 0.1)


def sample(theta: Tensor, generator: Generator | None) -> Tensor:
    """theta `(n, 2)` to x `(n, 2)`."""
    component = torch.randint(len(SCALES), (len(theta), 1), generator=generator)
    noise = torch.randn(theta.shape, generator=generator, dtype=theta.dtype)
    return theta + torch.tensor(SCALES, dtype=theta.dtype)[component] * noise


def log_density(theta: Tensor, x: Tensor) -> Tensor:
    """theta `(n, 2)` and x `(n, 2)` to `log p(x | theta)`, `(n,)`."""
    components: list[Distribution] = [Normal(theta, scale) for scale in SCALES]
    log_p = torch.stack([component.log_prob(x).sum(-1) for component in components])
    return log_p.logsumexp(0) - math.log(len(SCALES))


TASK = Task(
    name="gaussian_mixture",
    parameters=("mean_1", "mean_2"),
    prior=box([-10.0, -10.0], [10.0, 10.0]),
    dim_x=2,
    sampler=sample,
    log_density=log_density,
)
