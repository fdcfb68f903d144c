r"""SLCP, simple likelihood and complex posterior: four draws of one Gaussian in the plane.

.. math::
    \theta \sim U(-3, 3)^5, \qquad x_i \mid \theta \sim N(m, S), \quad i = 1, \dots, 4, \\
    m = \begin{pmatrix} \theta_1 \\ \theta_2 \end{pmatrix}, \quad
    S = \begin{pmatrix} s_1^2 + \epsilon & \rho s_1 s_2 \\ \rho s_1 s_2 & s_2^2 + \epsilon \end{pmatrix}, \\
    s_1 = \theta_3^2, \quad s_2 = \theta_4^2, \quad \rho = \tanh \theta_5

The signs of theta_3 and theta_4 leave no trace in x: four modes, sharply cut by the prior. As in the
benchmark, epsilon = 1e-6 keeps S positive definite where a standard deviation vanishes.

Lueckmann et al. (2021), arXiv 2101.04653, task T.3; Papamakarios, Sterratt & Murray (2019). All
quantities are without units.
"""

from __future__ import annotations

__all__ = ["TASK", "log_density", "sample"]

import math

import torch
from torch import Generator, Tensor

from simulators.tasks.task import Task, box

NUM_DRAWS = 4
EPSILON = 1e-6


def _scale_tril(theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The entries 11, 21 and 22 of S's Cholesky factor, each `(n, 1)`."""
    s_1, s_2 = theta[:, 2:3].square(), theta[:, 3:4].square()
    l_11 = (s_1.square() + EPSILON).sqrt()
    l_21 = theta[:, 4:].tanh() * s_1 * s_2 / l_11
    return l_11, l_21, (s_2.square() + EPSILON - l_21.square()).sqrt()


def sample(theta: Tensor, generator: Generator | None) -> Tensor:
    """theta `(n, 5)` to x `(n, 8)`: the coordinates of the first draw, of the second, and so on."""
    l_11, l_21, l_22 = _scale_tril(theta)
    z_1, z_2 = torch.randn(2, len(theta), NUM_DRAWS, generator=generator, dtype=theta.dtype)
    x = theta[:, :2, None] + torch.stack([l_11 * z_1, l_21 * z_1 + l_22 * z_2], dim=1)
    return x.mT.flatten(1)


def log_density(theta: Tensor, x: Tensor) -> Tensor:
    """theta `(n, 5)` and x `(n, 8)` to `log p(x | theta)`, `(n,)`."""
    l_11, l_21, l_22 = _scale_tril(theta)
    residual = x.reshape(-1, NUM_DRAWS, 2) - theta[:, None, :2]
    z_1 = residual[..., 0] / l_11
    z_2 = (residual[..., 1] - l_21 * z_1) / l_22
    log_p = -0.5 * (z_1.square() + z_2.square()) - (2 * math.pi * l_11 * l_22).log()
    return log_p.sum(-1)


TASK = Task(
    name="slcp",
    parameters=("mean_1", "mean_2", "root_scale_1", "root_scale_2", "atanh_rho"),
    prior=box([-3.0] * 5, [3.0] * 5),
    dim_x=2 * NUM_DRAWS,
    sampler=sample,
    log_density=log_density,
)
