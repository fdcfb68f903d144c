r"""How long a simulation will take, as a function of its parameters.

A log-normal regression: `log t` is normal around a quadratic polynomial of the whitened parameters,

.. math:: \log t \mid u \sim \mathcal N(w^\top \phi(u), s^2), \qquad \mathbb E[t \mid u] = e^{w^\top \phi(u) + s^2 / 2},

with `w` by ridge regression, whose penalty is chosen by generalized cross-validation (Golub, Heath & Wahba 1979).
"""

from __future__ import annotations

__all__ = ["Runtime"]

from dataclasses import dataclass

import torch
from torch import Tensor

#: Below so many runtimes, all are taken to be alike.
_MIN_ROWS = 30
#: Beyond so many standard deviations of the prior a polynomial is not believed.
_REACH = 3.0
#: Above this dimension, products of different parameters are left out.
_MAX_PRODUCTS = 12
_PENALTIES = torch.logspace(-4, 4, 17, dtype=torch.float64)


@dataclass(frozen=True)
class Runtime:
    """The fitted regression.

    Attributes:
        weights: `w`.
        variance: `s^2`.
        low, high: Shortest and longest time that is believed, in seconds.
    """

    weights: Tensor
    variance: float
    low: float
    high: float

    @classmethod
    def fit(cls, u: Tensor, seconds: Tensor) -> Runtime:
        """Fits to whitened parameters `(n, d)` and times `(n,)`; rows without a positive, finite time are left out."""
        known = seconds.isfinite() & (seconds > 0)
        u, t = u[known].double(), seconds[known].double()
        phi = _features(u)
        weights = torch.zeros(phi.shape[1], dtype=torch.float64)
        if not len(t):
            return cls(weights, 0.0, 1.0, 1.0)
        log_t = t.log()
        weights[0] = log_t.mean()
        residual = log_t - weights[0]
        if len(t) >= _MIN_ROWS:
            weights[1:], residual = _ridge(phi[:, 1:], residual)
            weights[0] = log_t.mean() - phi[:, 1:].mean(dim=0) @ weights[1:]
        low, high = t.quantile(torch.tensor([0.01, 0.99], dtype=torch.float64)).tolist()
        return cls(weights, float(residual.square().mean()), low, high)

    def expected(self, u: Tensor) -> Tensor:
        """`E[t | u]` in seconds for `u` `(n, d)`, `(n,)`; within the times that were seen."""
        mean = _features(u.double()) @ self.weights
        return (mean + self.variance / 2).clamp(max=50.0).exp().clamp(self.low, self.high)


def _features(u: Tensor) -> Tensor:
    """1, all parameters, their squares and products: `(n, d)` -> `(n, m)`."""
    u = u.double().clamp(-_REACH, _REACH)
    d = u.shape[-1]
    i, j = torch.triu_indices(d, d) if d <= _MAX_PRODUCTS else torch.arange(d).expand(2, d)
    products = u[:, i] * u[:, j]
    return torch.cat([torch.ones(len(u), 1, dtype=torch.float64), u, products], dim=1)


def _ridge(phi: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the ridge regression of `y`, and its residuals as cross-validation sees them."""
    centered = phi - phi.mean(dim=0)
    left, values, right = torch.linalg.svd(centered, full_matrices=False)
    projected, n = left.mT @ y, len(y)
    best: tuple[float, Tensor, Tensor] | None = None
    for penalty in _PENALTIES:
        shrink = values.square() / (values.square() + penalty)
        residual = y - left @ (shrink * projected)
        free = n - 1 - float(shrink.sum())
        score = n * float(residual.square().sum()) / max(free, 1.0) ** 2
        if best is None or score < best[0]:
            weights = right.mT @ (values / (values.square() + penalty) * projected)
            best = score, weights, residual * (n / max(free, 1.0)) ** 0.5
    assert best is not None
    return best[1], best[2]
