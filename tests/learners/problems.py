"""A problem with known answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal


@dataclass(frozen=True)
class LinearGaussian:
    """`x ~ N(A theta, diag(noise)^2)`, prior `N(0, 4 I)`: every tempered posterior is normal."""

    matrix: Tensor
    noise: Tensor

    @property
    def prior(self) -> MultivariateNormal:
        return MultivariateNormal(torch.zeros(2), 4 * torch.eye(2))

    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """`theta` `(n, 2)` of the prior and `x` `(n, 2)`."""
        generator = torch.Generator().manual_seed(seed)
        theta = 2 * torch.randn(n, 2, generator=generator)
        return theta, theta @ self.matrix.T + self.noise * torch.randn(n, 2, generator=generator)

    def log_likelihood(self, theta: Tensor, x: Tensor) -> Tensor:
        mean = theta @ self.matrix.T.to(theta)
        return torch.distributions.Normal(mean, self.noise.to(theta)).log_prob(x).sum(dim=-1)

    def posterior(self, x: Tensor, beta: float) -> MultivariateNormal:
        """`p_beta(theta | x)`."""
        weighted = beta * self.matrix.T / self.noise.square()
        covariance = torch.linalg.inv(torch.eye(2) / 4 + weighted @ self.matrix)
        return MultivariateNormal(covariance @ weighted @ x, covariance)
