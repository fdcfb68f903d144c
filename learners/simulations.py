"""Simulations as the learner takes them: parameters, data, and how each row came to be."""

from __future__ import annotations

__all__ = ["SimulationSet", "Simulations", "truncated_weights"]

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from simulators.errors import DataError

from .numbers import as_double
from .rows import Rows


@dataclass(frozen=True)
class Simulations:
    """A set of finished simulations, failures included.

    Attributes:
        theta: `(n, d)`, double precision.
        x: `(n, k)`, double precision; rows of failures are NaN.
        log_proposal: Log density that each theta was proposed from, `(n,)`; NaN where there is none.
    """

    theta: Tensor
    x: Tensor
    log_proposal: Tensor

    def __post_init__(self) -> None:
        if self.theta.ndim != 2 or self.x.ndim != 2 or len(self.theta) != len(self.x):
            raise DataError(
                "expected theta of shape (n, d) and x of shape (n, k) with the same n, "
                f"got {tuple(self.theta.shape)} and {tuple(self.x.shape)}"
            )
        if not self.theta.isfinite().all():
            raise DataError("theta has NaN or infinite values; every simulated parameter must be finite")

    @classmethod
    def from_tensors(cls, theta: Any, x: Any) -> Simulations:
        """Simulations of unknown proposal; `x` `(n, ...)` is flattened."""
        theta, x = as_double(theta, "theta"), as_double(x, "x")
        if x.ndim > 2:
            x = x.flatten(1)
        return cls(theta, x, torch.full((len(theta),), torch.nan, dtype=torch.float64))

    @property
    def valid(self) -> Tensor:
        """Which rows have a finite result, boolean `(n,)`."""
        return self.x.isfinite().all(dim=1)

    def take(self, rows: Tensor) -> Simulations:
        """Some rows, by a mask `(n,)` or by positions."""
        return Simulations(self.theta[rows], self.x[rows], self.log_proposal[rows])

    def __len__(self) -> int:
        return len(self.theta)


class SimulationSet:
    """All simulations that a learner has been given.

    Attributes:
        theta, log_proposal: As those of `Simulations`.
        x: Data `(n, k)`, which need not be in memory.
        valid: Which of them are finite, boolean `(n,)`.
    """

    def __init__(self, dim: int) -> None:
        self.theta = torch.zeros(0, dim, dtype=torch.float64)
        self.log_proposal = torch.zeros(0, dtype=torch.float64)
        self.valid = torch.zeros(0, dtype=torch.bool)
        self.x = Rows()

    def __len__(self) -> int:
        return len(self.theta)

    def add(self, simulations: Simulations) -> None:
        """Adds simulations after those that are there."""
        self.theta = torch.cat([self.theta, simulations.theta])
        self.log_proposal = torch.cat([self.log_proposal, simulations.log_proposal])
        self.valid = torch.cat([self.valid, simulations.valid])
        self.x.append(simulations.x)


def truncated_weights(log_weight: Tensor) -> Tensor:
    """Importance weights `(n,)` of finite logarithms, none above `sqrt(n)` times their mean (Ionides 2008).

    A few huge ones must not count for all.
    """
    weight = log_weight.exp()
    return weight.clamp(max=float(weight.mean() * len(weight) ** 0.5))
