r"""The same draws for less: a density of proposals in favour of what is cheap to simulate.

If the error at u falls like `1 / n(u)` with the simulations near it, and it counts as a density g does, then of all
ways to spend a given time the one with the least `\int g / n` is `n \propto g c^{-1/2}`, c being the time that a
simulation takes. With the expected time of a `Runtime`, and `c_0` the shortest of draws from g, but no less than a
fifth of their mean,

.. math:: h(u) = \frac1Z\, g(u)\, a(u), \qquad Z = \mathbb E_g[a], \qquad
    a(u) = \min\Big(1, \max\big(0.05, \sqrt{c_0 / \mathbb E[t \mid u]}\big)\Big).

A draw of g is kept with probability `a`: the density stays known, up to the error of the mean `Z` of many draws. Where
all simulations take alike, `h` is g. Without the fifth, what takes next to no time would outnumber all the rest, and
little else would be learned (`benchmarks/TRIED.md`). (Cost-aware proposals `p(\theta) c^{-k}`: Bharti et al. 2025,
arXiv 2410.07930.)
"""

from __future__ import annotations

__all__ = ["ThriftyDensity"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .prior_density import PriorDensity
from .runtime import Runtime
from .tempered_density import TemperedDensity

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
        floor: `c_0` in seconds.
        kept: `Z`.
    """

    density: TemperedDensity | PriorDensity
    runtime: Runtime
    floor: float
    kept: float

    @classmethod
    def of(
        cls, density: TemperedDensity | PriorDensity, runtime: Runtime, generator: torch.Generator
    ) -> ThriftyDensity:
        """`h` for `g` and the times that are expected."""
        seconds = runtime.expected(density.sample(_NORMALIZING, generator)[0])
        floor = max(float(seconds.min()), _CHEAPEST * float(seconds.mean()))
        return cls(density, runtime, floor, float(_share(seconds, floor).mean()))

    def sample(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """As `TemperedDensity.sample`."""
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        missing = n
        while missing > 0:
            u, beta, row = self.density.sample(math.ceil(1.1 * missing / self.kept) + 8, generator)
            share = _share(self.runtime.expected(u), self.floor)
            rows = (torch.rand(len(u), generator=generator, dtype=share.dtype) < share).nonzero().squeeze(-1)[:missing]
            parts.append((u[rows], beta[rows], row[rows]))
            missing -= len(rows)
        if not parts:
            return self.density.sample(0, generator)
        u, beta, row = (torch.cat(columns) for columns in zip(*parts, strict=True))
        return u, beta, row

    def log_prob(self, u: Tensor) -> Tensor:
        """`log h(u)` for `u` `(n, d)`, shape `(n,)`."""
        share = _share(self.runtime.expected(u), self.floor)
        return self.density.log_prob(u) + (share / self.kept).log().float()


def _share(seconds: Tensor, floor: float) -> Tensor:
    """`a` of expected times `(n,)`."""
    return (floor / seconds).sqrt().clamp(min=_LEAST, max=1.0)
