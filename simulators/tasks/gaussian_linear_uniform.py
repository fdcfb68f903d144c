r"""Gaussian linear uniform: the mean of a Gaussian in ten dimensions, under a uniform prior.

.. math:: \theta \sim U(-1, 1)^{10}, \qquad x \mid \theta \sim N(\theta, 0.1 I)

The prior cuts the posterior off: its mass must not leak out of the box.

Lueckmann et al. (2021), arXiv 2101.04653, task T.2. All quantities are without units.
"""

from __future__ import annotations

__all__ = ["TASK"]

from simulators.tasks.gaussian_linear import DIM, log_density, sample
from simulators.tasks.task import Task, box

TASK = Task(
    name="gaussian_linear_uniform",
    parameters=tuple(f"mean_{i}" for i in range(1, DIM + 1)),
    prior=box([-1.0] * DIM, [1.0] * DIM),
    dim_x=DIM,
    sampler=sample,
    log_density=log_density,
)
