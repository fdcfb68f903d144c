r"""What a task is: a prior, a way to draw `x` given `theta` and, where it is known, the likelihood.

.. math:: \theta \sim p(\theta), \qquad x \sim p(x \mid \theta)

Seven of the tasks are those of Lueckmann, Boelts, Greenberg, Goncalves & Macke (2021), "Benchmarking
Simulation-Based Inference", arXiv 2101.04653.
"""

from __future__ import annotations

__all__ = ["LogDensity", "Sampler", "Task", "box"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor
from torch.distributions import Distribution, Independent, Uniform

from simulators.errors import SimulatorError

#: `theta` `(n, d)` and a generator (None: torch's global one) to one draw of `x` per row, `(n, k)`.
Sampler = Callable[[Tensor, Generator | None], Tensor]

#: `theta` `(n, d)` and `x` `(n, k)` to `log p(x | theta)`, `(n,)`.
LogDensity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Task:
    """One inference problem; it pickles by reference to the functions of its module.

    Arguments:
        name: Name by which `get_task` finds it.
        parameters: Names of theta's columns.
        prior: Distribution over theta, `event_shape` `(d,)`, samples in float32.
        dim_x: Length k of one x.
        sampler: Draws x; called with theta in float64.
        log_density: Evaluates `log p(x | theta)` in float64; None where it is intractable.
    """

    name: str
    parameters: tuple[str, ...]
    prior: Distribution
    dim_x: int
    sampler: Sampler
    log_density: LogDensity | None = None

    @property
    def dim_theta(self) -> int:
        return len(self.parameters)

    @property
    def has_likelihood(self) -> bool:
        return self.log_density is not None

    def simulate(self, theta: Tensor, seed: int | None = None) -> Tensor:
        """One simulation per row of theta.

        Arguments:
            theta: `(n, d)`, on the CPU.
            seed: Non-negative; the same theta and seed give the same x, and torch's global generator is
                neither read nor advanced. None draws from the global generator.

        Returns:
            `(n, k)` in float32.

        Raises:
            SimulatorError: theta is not `(n, d)`.
        """
        self._check_theta(theta)
        return self.sampler(theta.detach().double(), _generator(seed)).float()

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        """The logarithm of `p(x | theta)`, normalized over x; differentiable in theta.

        Arguments:
            theta: `(n, d)`, on any device.
            x: One observation `(k,)` for all rows, or `(n, k)`.

        Returns:
            `(n,)` in theta's dtype; computed in float64.

        Raises:
            SimulatorError: The task has no tractable likelihood, or a shape is not as above.
        """
        if self.log_density is None:
            raise SimulatorError(f"the likelihood of task '{self.name}' is intractable; simulate it instead")
        self._check_theta(theta)
        shape = (len(theta), self.dim_x)
        if x.shape not in (shape, shape[1:]):
            raise SimulatorError(
                f"task '{self.name}' takes x of shape {shape[1:]} or {shape}, but it came as {tuple(x.shape)}"
            )
        x = x.to(theta.device, torch.float64).expand(shape)
        return self.log_density(theta.double(), x).to(theta.dtype)

    def _check_theta(self, theta: Tensor) -> None:
        if theta.ndim != 2 or theta.shape[1] != self.dim_theta:
            raise SimulatorError(
                f"task '{self.name}' takes theta of shape (n, {self.dim_theta}), columns "
                f"{', '.join(self.parameters)}, but it came as {tuple(theta.shape)}"
            )


def box(low: Sequence[float], high: Sequence[float]) -> Distribution:
    """Uniform over the box between the corners `low` and `high`, each of length d; its log density outside
    is negative infinity."""
    # Validation would raise an exception out there.
    sides = Uniform(torch.tensor(low), torch.tensor(high), validate_args=False)
    return Independent(sides, 1)


def _generator(seed: int | None) -> Generator | None:
    if seed is None:
        return None
    # Scrambled first: whoever draws theta after torch.manual_seed(1) and simulates it with seed=1 would
    # otherwise meet the numbers behind theta again, as noise.
    return Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
