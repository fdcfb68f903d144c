"""Problems with known answers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution, MultivariateNormal, constraints

from simulators.prior import Marginal, ProductPrior


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


@dataclass(frozen=True)
class Autoregression:
    """`x_t = phi x_{t-1} + sigma e_t`, from `x_0 = sigma e_0`: series whose posterior a grid gives.

    Prior: `phi` uniform on (-0.95, 0.95), `log sigma` normal with standard deviation 0.5.
    """

    length: int

    @property
    def prior(self) -> ProductPrior:
        phi, log_sigma = Marginal("Uniform", {"low": -0.95, "high": 0.95}), Marginal("Normal", {"loc": 0, "scale": 0.5})
        return ProductPrior({"phi": phi, "log_sigma": log_sigma})

    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        """`theta` `(n, 2)` of the prior and `x` `(n, length)`."""
        generator = torch.Generator().manual_seed(seed)
        uniform = torch.rand(n, generator=generator)
        theta = torch.stack([1.9 * uniform - 0.95, 0.5 * torch.randn(n, generator=generator)], dim=1)
        return theta, self.simulate(theta, generator)

    def simulate(self, theta: Tensor, generator: torch.Generator) -> Tensor:
        """`x` `(n, length)` of `theta` `(n, 2)`."""
        noise = theta[:, 1:].exp() * torch.randn(len(theta), self.length, generator=generator)
        x = [noise[:, 0]]
        for step in noise[:, 1:].unbind(1):
            x.append(theta[:, 0] * x[-1] + step)
        return torch.stack(x, dim=1)

    def moments(self, x: Tensor, beta: float) -> tuple[Tensor, Tensor]:
        """Means and standard deviations `(2,)` of `p_beta(theta | x)`, by quadrature."""
        x = x.double()
        phi = torch.linspace(-0.949, 0.949, 1000, dtype=torch.float64)[:, None]
        log_sigma = torch.linspace(-2.5, 2.5, 1000, dtype=torch.float64)[None]
        past, now = x[:-1], x[1:]
        square = x.square().sum() - 2 * phi * (now @ past) + phi.square() * (past @ past)
        log_p = beta * (-len(x) * log_sigma - square / (2 * torch.exp(2 * log_sigma))) - 2 * log_sigma.square()
        weight = torch.softmax(log_p.flatten(), 0).reshape(log_p.shape)
        mean = torch.stack([(weight * value).sum() for value in (phi, log_sigma)])
        square_mean = torch.stack([(weight * value.square()).sum() for value in (phi, log_sigma)])
        return mean, (square_mean - mean.square()).sqrt()


class Triangle(Distribution):
    """Uniform where `0 < theta_1 < theta_2 < 1`; strict, it tells its support and raises outside."""

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict
        super().__init__(event_shape=torch.Size([2]), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:  # type: ignore[override]
        return _Ascending() if self.strict else constraints.real_vector

    def sample(self, shape: torch.Size = torch.Size()) -> Tensor:
        return torch.rand(*shape, 2).sort(dim=-1).values

    def log_prob(self, theta: Tensor) -> Tensor:
        inside = _Ascending().check(theta)
        if self.strict and not inside.all():
            raise ValueError("Expected value argument to be within the support")
        return torch.where(inside, math.log(2.0), -math.inf)


class _Ascending(constraints.Constraint):
    event_dim = 1
    lower_bound, upper_bound = 0.0, 1.0

    def check(self, value: Tensor) -> Tensor:
        return (value > 0).all(dim=-1) & (value[..., 0] < value[..., 1]) & (value < 1).all(dim=-1)
