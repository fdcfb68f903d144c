r"""Stochastic Lorenz 96: a toy atmosphere whose unresolved scales are a line plus coloured noise.

.. math::
    \frac{dy_k}{dt} = -y_{k-1} (y_{k-2} - y_{k+1}) - y_k + F - (b_0 + b_1 y_k) + \eta_k(t), \qquad
    k = 1, \dots, 8 \text{ (cyclic)}, \quad F = 10, \\
    \eta_k(t + h) = \phi \, \eta_k(t) + \sigma_e \sqrt{1 - \phi^2} \, z_k(t), \qquad
    z_k(t) \sim N(0, 1), \quad h = 1/30

eta is constant within a step h and starts from its stationary distribution :math:`N(0, \sigma_e^2)`.
The prior is uniform: b_0 in [1.4, 2.2], b_1 in [0, 1], sigma_e in [1.5, 2.5], phi in [0, 1]. One unit of
time is about five days of weather. x is the raw state at the times 0.3, 0.6, ..., 1.5, all eight
variables at the first time, then at the second, and so on: 40 numbers. Since eight of nine steps go
unseen, the likelihood is an integral over their noise, and intractable.

Wilks (2005), "Effects of stochastic parametrizations in the Lorenz '96 system", Q. J. R. Meteorol. Soc.
131; closure, prior, K = 8, h and duration as in Pacchiardi & Dutta (2022), "Score matched neural
exponential families for likelihood-free inference", J. Mach. Learn. Res. 23, arXiv 2012.10903. The
initial state, the thinning of the trajectory and the stationary start are ours.
"""

from __future__ import annotations

__all__ = ["TASK", "sample", "tendency"]

from functools import partial

import torch
from torch import Generator, Tensor

from simulators.tasks.runge_kutta import step
from simulators.tasks.task import Task, box

FORCING = 10.0
STEP = 1 / 30
STEPS_BETWEEN = 9
NUM_TIMES = 5

#: A state on the attractor: twenty units of time from (0, 1, ..., 7) with b_0 = 2, b_1 = 0.1, no noise.
START = (0.1929, 3.9509, 7.7960, 6.1580, 0.6385, -3.7538, -0.7495, -0.2012)


def tendency(y: Tensor, b_0: Tensor, b_1: Tensor, eta: Tensor) -> Tensor:
    """The derivative dy/dt: y and eta `(n, 8)`, b_0 and b_1 `(n, 1)`, to `(n, 8)`."""
    advection = y.roll(1, -1) * (y.roll(-1, -1) - y.roll(2, -1))
    return advection - y + FORCING - (b_0 + b_1 * y) + eta


def sample(theta: Tensor, generator: Generator | None) -> Tensor:
    """theta `(n, 4)` to x `(n, 40)`."""
    b_0, b_1, sigma_e, phi = theta.unsqueeze(1).unbind(-1)
    y = torch.tensor(START, dtype=theta.dtype).expand(len(theta), -1)

    def noise() -> Tensor:
        return sigma_e * torch.randn(y.shape, generator=generator, dtype=theta.dtype)

    eta, states = noise(), []
    for _ in range(NUM_TIMES):
        for _ in range(STEPS_BETWEEN):
            y = step(partial(tendency, b_0=b_0, b_1=b_1, eta=eta), y, STEP)
            eta = phi * eta + (1 - phi**2).sqrt() * noise()
        states.append(y)
    return torch.cat(states, dim=-1)


TASK = Task(
    name="lorenz96",
    parameters=("b_0", "b_1", "sigma_e", "phi"),
    prior=box([1.4, 0.0, 1.5, 0.0], [2.2, 1.0, 2.5, 1.0]),
    dim_x=NUM_TIMES * len(START),
    sampler=sample,
)
