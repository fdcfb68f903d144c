r"""Two moons: a crescent in x for every theta, and two crescents in theta for every x.

.. math::
    \theta \sim U(-1, 1)^2, \quad a \sim U(-\pi/2, \pi/2), \quad r \sim N(0.1, 0.01^2), \\
    x = \begin{pmatrix} r \cos a + 0.25 \\ r \sin a \end{pmatrix}
      + \frac{1}{\sqrt 2} \begin{pmatrix} -|\theta_1 + \theta_2| \\ -\theta_1 + \theta_2 \end{pmatrix}

With r and a the polar coordinates of what x adds to the shift, and 1/r their Jacobian,

.. math:: p(x \mid \theta) = \frac{N(r; 0.1, 0.01^2)}{\pi r} \quad \text{where } |a| < \pi/2, \text{ else } 0.

Lueckmann et al. (2021), arXiv 2101.04653, task T.8; Greenberg, Nonnenmacher & Macke (2019). All
quantities are without units.
"""

from __future__ import annotations

__all__ = ["TASK", "log_density", "sample"]

import math

import torch
from torch import Generator, Tensor

from simulators.tasks.task import Task, box

RADIUS, WIDTH, OFFSET = 0.1, 0.01, 0.25


def _shift(theta: Tensor) -> Tensor:
    """Centre of the crescent's circle, `(n, 2)`."""
    theta_1, theta_2 = theta.unbind(-1)
    rotated = torch.stack([-(theta_1 + theta_2).abs(), theta_2 - theta_1], dim=-1) / math.sqrt(2)
    return rotated + torch.tensor([OFFSET, 0.0], dtype=theta.dtype, device=theta.device)


def sample(theta: Tensor, generator: Generator | None) -> Tensor:
    """theta `(n, 2)` to x `(n, 2)`."""
    angle = math.pi * (torch.rand(len(theta), generator=generator, dtype=theta.dtype) - 0.5)
    radius = RADIUS + WIDTH * torch.randn(len(theta), generator=generator, dtype=theta.dtype)
    crescent = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=-1)
    return crescent + _shift(theta)


def log_density(theta: Tensor, x: Tensor) -> Tensor:
    """theta `(n, 2)` and x `(n, 2)` to `log p(x | theta)`, `(n,)`; negative infinity off the half-plane."""
    crescent = x - _shift(theta)
    radius = crescent.norm(dim=-1)
    log_normal = -0.5 * ((radius - RADIUS) / WIDTH).square() - math.log(WIDTH * math.sqrt(2 * math.pi))
    log_p = log_normal - (math.pi * radius).log()
    return torch.where(crescent[:, 0] > 0, log_p, -math.inf)


TASK = Task(
    name="two_moons",
    parameters=("theta_1", "theta_2"),
    prior=box([-1.0, -1.0], [1.0, 1.0]),
    dim_x=2,
    sampler=sample,
    log_density=log_density,
)
