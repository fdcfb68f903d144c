r"""The same draws for less: a density of proposals in favour of what is cheap to simulate, and succeeds.

If the error at u falls like `1 / n(u)` with the simulations near it, and it counts as a density g does, then of all
ways to spend a given time the one with the least `\int g / n` is `n \propto g c^{-1/2}`, c being the time that a
simulation takes; and where only a share s of the simulations succeed, a result costs c / s. With the expected time of a
`Runtime`, and `c_0` the shortest of draws from g, but no less than a fifth of their mean,

.. math:: h(u) = \frac1Z\, g(u)\, a(u), \qquad Z = \mathbb E_g[a], \qquad
    a(u) = \max\Big(0.05, \min\big(1, \sqrt{c_0 / \mathbb E[t \mid u]}\big) \sqrt{p(\mathrm{valid} \mid u)}\Big),

and zero outside the prior's support, into which the kernels of g need not fit. A draw of g is kept with probability
`a`: the density stays known, up to the error of the mean `Z` of many draws. Where all simulations take alike and
succeed, `h` is g. Without the fifth, what takes next to no time would outnumber all the rest, and
little else would be learned (`benchmarks/TRIED.md`). (Cost-aware proposals `p(\theta) c^{-k}`: Bharti et al. 2025,
arXiv 2410.07930.)
"""

from __future__ import annotations

__all__ = ["ThriftyDensity"]

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .prior_density import PriorDensity
from .runtime import Runtime
from .tempered_density import TemperedDensity
from .validity import Validity
from .whitening import Whitening

_NORMALIZING = 50_000
#: Least probability that a draw is kept with: it bounds the weights of simulations.
_LEAST = 0.05
#: Share of the mean time below which nothing is any cheaper.
_CHEAPEST = 0.2


@dataclass(frozen=True)
class ThriftyDensity:
    """See the module.

    Attributes:
        density: `g`.
        runtime: `E[t | u]`.
        validity: `p(valid | u)`, None where nothing fails.
        whitening: That of the prior; knows where there is none.
        floor: `c_0` in seconds.
        kept: `Z`.
    """

    density: TemperedDensity | PriorDensity
    runtime: Runtime
    validity: Validity | None
    whitening: Whitening
    floor: float
    kept: float = 1.0

    @classmethod
    def of(
        cls,
        density: TemperedDensity | PriorDensity,
        runtime: Runtime,
        validity: Validity | None,
        whitening: Whitening,
        generator: torch.Generator,
    ) -> ThriftyDensity:
        """`h` for `g`, the times that are expected, and how likely simulations are to succeed."""
        u = density.sample(_NORMALIZING, generator)[0]
        seconds = runtime.expected(u)
        floor = max(float(seconds.min()), _CHEAPEST * float(seconds.mean()))
        thrifty = cls(density, runtime, validity, whitening, floor)
        return replace(thrifty, kept=float(thrifty._share(u).mean()))

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """As `TemperedDensity.sample`."""
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        missing = n
        while missing > 0:
            u, beta, row = self.density.sample(math.ceil(1.1 * missing / self.kept) + 8, generator)
            share = self._share(u)
            rows = (torch.rand(len(u), generator=generator, dtype=share.dtype) < share).nonzero().squeeze(-1)[:missing]
            parts.append((u[rows], beta[rows], row[rows]))
            missing -= len(rows)
        if not parts:
            return self.density.sample(0, generator)
        u, beta, row = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return u, beta, row

    def log_prob(self, u: Tensor) -> Tensor:
        """`log h(u)` for `u` `(n, d)`, shape `(n,)`."""
        return self.density.log_prob(u) + (self._share(u) / self.kept).log().float()

    @torch.no_grad()
    def _share(self, u: Tensor) -> Tensor:
        """`a(u)` for `u` `(n, d)`, `(n,)`."""
        share = (self.floor / self.runtime.expected(u)).sqrt().clamp(max=1.0)
        if self.validity is not None:
            share = share * (0.5 * self.validity.log_prob(u.float())).exp()
        return share.clamp(min=_LEAST) * (self.whitening.log_prior_ratio(u) > -math.inf)
