r"""Where tempered posteriors may lie: proposals that do not depend on where a particle is.

A sampler that comes from the prior loses its way where a posterior changes abruptly with beta: its particles stay where
they were good a rung ago, and few find what is far narrower. Who knows about where the posterior lies proposes

.. math:: u' \sim (1 - a)\, t_\nu\big(\mu_\beta, (I + \beta H)^{-1}\big) + a\, \mathcal N(0, I)

with the tempered Laplace approximation of `laplace.py`. It need not be right: a proposal is accepted by how its `p / q`
compares with that of where the particle is (Hastings 1970, Biometrika 57, 97). Its tails are heavy, and the prior is
part of it, so that `p / q` is bounded where the approximation is beside the posterior, and no particle waits for long.
"""

from __future__ import annotations

__all__ = ["Place", "Places"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .laplace import Normal, tempered

#: Degrees of freedom `nu`, a whole number, and the prior's share `a`.
_DEGREES, _PRIOR = 5, 0.2


@dataclass(frozen=True)
class Place:
    """The proposal for one temperature of each of `m` posteriors.

    Attributes:
        normal: The approximations, of `m` rows.
    """

    normal: Normal

    def sample(self, n: int, randn: Callable[..., Tensor], rand: Callable[..., Tensor]) -> Tensor:
        """`n` draws of each, `(m, n, d)`; `randn` and `rand` give normal and uniform numbers of a shape."""
        m, d = self.normal.mean.shape
        chi_square = randn(m, n, _DEGREES).square().mean(dim=-1, keepdim=True)
        near = (randn(m, n, d) / chi_square.sqrt()) @ self.normal.root(-0.5) + self.normal.mean.unsqueeze(1)
        return torch.where(rand(m, n, 1).to(near.device) < _PRIOR, randn(m, n, d), near)

    def log_prob(self, u: Tensor) -> Tensor:
        """The log density at `u` `(m, n, d)`, `(m, n)`."""
        d = u.shape[-1]
        half = (_DEGREES + d) / 2
        square = ((u - self.normal.mean.unsqueeze(1)) @ self.normal.root(0.5)).square().sum(dim=-1)
        constant = math.lgamma(half) - math.lgamma(_DEGREES / 2) - d / 2 * math.log(_DEGREES * math.pi)
        near = constant + self.normal.precision.log().sum(dim=-1, keepdim=True) / 2
        near = near - half * torch.log1p(square / _DEGREES)
        prior = -u.square().sum(dim=-1) / 2 - d / 2 * math.log(2 * math.pi)
        return torch.logaddexp(near + math.log1p(-_PRIOR), prior + math.log(_PRIOR))


@dataclass(frozen=True)
class Places:
    """Where the posteriors of `m` x may lie.

    Attributes:
        mode: At beta = 1, `(m, d)`.
        frame: What `laplace.framed` makes of the information there, `(m, d + d^2)`.
    """

    mode: Tensor
    frame: Tensor

    def at(self, rows: Tensor, beta: Tensor) -> Place:
        """Those of `rows` `(a,)` at temperatures `beta` `(a,)`."""
        rows = rows.to(self.mode.device)
        return Place(tempered(self.mode[rows], self.frame[rows], beta.to(self.mode)[:, None]))
