r"""A density over whitened parameters made of tempered particles: where simulations should go.

.. math:: g(u) = \frac1m \sum_{j=1}^{m} \mathcal N(u;\, u_j,\, h^2 \Sigma_j)

with particles `u_j` of `p_beta(u | x)` at temperatures spread log-uniformly and `Sigma_j` the covariance of the
particles at the temperature of j. Unlike particles it has a known density, which every proposed row records.
"""

from __future__ import annotations

__all__ = ["TemperedDensity"]

from dataclasses import dataclass

import torch
from torch import Tensor

from .tempering import TemperedParticles

_BANDWIDTH = 0.35
_JITTER = 1e-8
#: Points at once: each is compared with every center.
_CHUNK = 8192


@dataclass(frozen=True)
class TemperedDensity:
    """See the module.

    Attributes:
        centers: `(m, d)`.
        beta: Temperature of each center, `(m,)`.
        row: Which x each center belongs to, `(m,)`.
        group: Which of the kernels each center has, `(m,)`.
        kernels: Cholesky factors of `h^2 Sigma`, `(g, d, d)`.
    """

    centers: Tensor
    beta: Tensor
    row: Tensor
    group: Tensor
    kernels: Tensor

    @classmethod
    def from_particles(
        cls, particles: TemperedParticles, num_centers: int, generator: torch.Generator
    ) -> TemperedDensity:
        """Draws `num_centers` particles, temperatures log-uniform over each ladder."""
        u = particles.u.cpu()
        rows = torch.multinomial(ladder_weights(particles), num_centers, replacement=True, generator=generator)
        columns = torch.randint(u.shape[1], (num_centers,), generator=generator)
        # Narrow ridges, and fewer particles than dimensions, need double precision.
        centered = (u - u.mean(dim=1, keepdim=True)).double()
        covariance = centered.mT @ centered / u.shape[1]
        jitter = torch.eye(u.shape[-1]).double() * (1 + covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None])
        kernels = (_BANDWIDTH * torch.linalg.cholesky(covariance + _JITTER * jitter)).float()
        index = particles.index.cpu()
        return cls(u[rows, columns], particles.beta[rows].cpu(), index[rows], rows, kernels)

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draws `u` `(n, d)` with the temperature `(n,)` and the x `(n,)` that each serves."""
        j = torch.randint(len(self.centers), (n,), generator=generator)
        noise = torch.randn(n, self.centers.shape[1], 1, generator=generator)
        u = self.centers[j] + (self.kernels[self.group[j]] @ noise).squeeze(-1)
        return u, self.beta[j], self.row[j]

    def log_prob(self, u: Tensor) -> Tensor:
        """`log g(u)` for `u` `(n, d)`, shape `(n,)`."""
        return torch.cat([self._log_prob(part) for part in u.split(_CHUNK)])

    def _log_prob(self, u: Tensor) -> Tensor:
        used, members = torch.unique(self.group, return_inverse=True)
        terms = []
        for k, group in enumerate(used.tolist()):
            kernel = torch.distributions.MultivariateNormal(
                torch.zeros(u.shape[-1]), scale_tril=self.kernels[group], validate_args=False
            )
            terms.append(kernel.log_prob(u[:, None] - self.centers[members == k]))
        log_count = torch.tensor(float(len(self.centers))).log()
        return torch.logsumexp(torch.cat(terms, dim=1), dim=1) - log_count


def ladder_weights(particles: TemperedParticles) -> Tensor:
    """Weights `(m,)` of all rungs under which `log beta` is uniform over each ladder, and every x alike."""
    index, log_beta = particles.index.cpu(), particles.beta.cpu().log()
    weights = torch.zeros(len(index))
    for x in index.unique():
        rows = (index == x).nonzero().squeeze(-1)
        rows = rows[log_beta[rows].argsort()]
        steps = log_beta[rows].diff()
        zero = torch.zeros(1, dtype=steps.dtype)
        weights[rows] = ((torch.cat([zero, steps]) + torch.cat([steps, zero])) / 2 + 1e-6).float()
        weights[rows] /= weights[rows].sum()
    return weights
