"""The prior as a density of proposals over whitened parameters: what serves every x alike."""

from __future__ import annotations

__all__ = ["PriorDensity"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from simulators.prior import prior_draws

from .whitening import Whitening, log_normal


@dataclass(frozen=True)
class PriorDensity:
    """See the module.

    Attributes:
        prior: `p(theta)`.
        whitening: Its whitening.
        beta_range: Lowest and highest temperature.
    """

    prior: Distribution
    whitening: Whitening
    beta_range: tuple[float, float]

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draws `u` `(n, d)`, a temperature `(n,)` for each, log-uniform, and zeros: no x is meant."""
        theta = prior_draws(self.prior, n, generator)
        low, high = (math.log(beta) for beta in self.beta_range)
        beta = (low + (high - low) * torch.rand(n, generator=generator)).exp()
        return self.whitening.to_u(theta).float(), beta, torch.zeros(n, dtype=torch.long)

    def log_prob(self, u: Tensor) -> Tensor:
        """`log p(u)` for `u` `(n, d)`, shape `(n,)`."""
        return log_normal(u) + self.whitening.log_prior_ratio(u)
