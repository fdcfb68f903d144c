r"""Is an observation like anything that was simulated?

The squared Mahalanobis distance `D(z) = (z - m)^T S^{-1} (z - m)` of scaled data is compared with those of the
simulations; the p-value is the share of simulations at least as far out. Those are each measured as a fresh one would
be, with mean and covariance of the others (Sherman & Morrison 1950): of wide data a simulation is much nearer to a
covariance that it had a part in.
"""

from __future__ import annotations

__all__ = ["Familiarity"]

import torch
from torch import Tensor


class Familiarity:
    """See the module.

    Arguments:
        mean: `(k,)`.
        precision: `S^{-1}`, `(k, k)`.
        distances: Sorted distances of simulations, `(m,)`.
    """

    def __init__(self, mean: Tensor, precision: Tensor, distances: Tensor) -> None:
        self.mean, self.precision, self.distances = mean, precision, distances

    @classmethod
    def fit(cls, z: Tensor, quantiles: int = 1001) -> Familiarity:
        """From scaled simulations `z` `(n, k)`."""
        z = z.double().cpu()
        covariance = torch.atleast_2d(torch.cov(z.mT)) + 1e-6 * torch.eye(z.shape[-1], dtype=torch.float64)
        mean, precision = z.mean(dim=0), torch.linalg.inv(covariance)
        distances = _without_itself(_distance(z[:100_000], mean, precision), len(z))
        levels = torch.linspace(0, 1, quantiles, dtype=torch.float64)
        return cls(mean, precision, torch.quantile(distances, levels))

    def p_value(self, z: Tensor) -> Tensor:
        """Share of simulations at least as far out as `z` `(n, k)`, shape `(n,)`."""
        distance = _distance(z.double().cpu(), self.mean, self.precision)
        rank = torch.searchsorted(self.distances, distance) / len(self.distances)
        return 1 - rank.clamp(max=1.0)


def _without_itself(distance: Tensor, n: int) -> Tensor:
    """Distances of some of `n` rows from mean and covariance of the other `n - 1`, given those from all of them."""
    if n < 3:
        return distance
    share, c = distance / (n - 1), n / (n - 1)
    return (n - 2) * c**2 * share / (1 - c * share).clamp(min=1e-9)


def _distance(z: Tensor, mean: Tensor, precision: Tensor) -> Tensor:
    centered = z - mean
    return ((centered @ precision) * centered).sum(dim=-1)
