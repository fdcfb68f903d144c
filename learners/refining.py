r"""The network's draws made exact for what it was distilled from: corrected by the source itself, at some cost.

A draw of the network is a transformed normal, `u = f^{-1}(\epsilon \mid x, \beta)`. In `\epsilon`, the posterior is

.. math:: p(\epsilon) \propto \mathcal N(\epsilon; 0, I)\, e^{g(\epsilon)}, \qquad
    g = \log p(u) + \beta\, \ell(u, x) - \log q(u \mid x, \beta),

and `g` is constant where the network is right. So the tempering sampler (`tempering.py`) walks from `g` counting
nothing to `g` counting in full, which takes few rungs, of particles for which one scale fits all directions (Hoffman et
al. 2019, arXiv 1903.03704). The first step is importance sampling with the network as the proposal (Dax et al. 2023,
arXiv 2210.05686); its effective sample size tells how far the network can be trusted at this x and beta:

.. math:: \text{efficiency} = \frac{(\sum_i w_i)^2}{n \sum_i w_i^2}, \qquad w_i = e^{g(\epsilon_i)}.

Both are right as far as the source is: its own error stays.
"""

from __future__ import annotations

__all__ = ["Refiner"]

import math
import operator
from dataclasses import dataclass

import torch
from torch import Tensor

from simulators.errors import RefinementError

from .network import PosteriorNetwork
from .saved_source import SavedSource
from .source import Source
from .tempering import IMPOSSIBLE, TemperingOptions, temper
from .whitening import Whitening, log_normal

#: Particles of one walk at least: their differences are its steps.
_FEWEST = 500
#: Particles walked at once, of all observations.
_AT_ONCE = 16_384
_WALK = TemperingOptions(moves=8, ess=0.5)


@dataclass(frozen=True)
class Refiner:
    """What corrects the draws of a network.

    Attributes:
        network: `q(u | x, beta)`.
        source: What the network was distilled from.
        whitening: Of the parameters.
    """

    network: PosteriorNetwork
    source: Source
    whitening: Whitening

    @classmethod
    def of(cls, network: PosteriorNetwork, source: Source | SavedSource | None, whitening: Whitening) -> Refiner:
        """One with that source, which is read if it was saved.

        Raises:
            RefinementError: There is none.
            SavedModelError: What was saved is damaged, or of another version.
        """
        if source is None:
            raise RefinementError(
                "there is nothing to refine with: the posterior was saved by an earlier version, or its prior or "
                "likelihood is code of yours, which is not saved; use it in the process that fits it, or fit it again"
            )
        return cls(network, source.restore() if isinstance(source, SavedSource) else source, whitening)

    @torch.no_grad()
    def draw(self, n: int, z: Tensor, seen: Tensor, beta: Tensor, seed: int | None) -> Tensor:
        """`n` draws `u` of the tempered posterior of each x at `beta` `(m,)`: `(n, m, d)`.

        `z` `(m, k)` is what the network sees of it, `seen` `(m, k)` what the source does.

        Raises:
            RefinementError: For one of them no theta was found that can have made it.
        """
        walks, generator = -(-max(1, n) // _AT_ONCE), _generator(seed)
        size = max(-(-n // walks), _FEWEST)
        step = max(1, _AT_ONCE // size)
        told = self.network.told(z)
        parts = list(zip(told.split(step), seen.split(step), beta.split(step), strict=True))
        draws = [torch.cat([self._walk(size, *part, generator) for part in parts], dim=1) for _ in range(walks)]
        return torch.cat(draws)[:n]

    @torch.no_grad()
    def efficiency(self, n: int, z: Tensor, seen: Tensor, beta: Tensor, seed: int | None) -> Tensor:
        """The effective share of `n` draws of the network, for each x at `beta` `(m,)`: `(m,)`; else as `draw`.

        Zero where no draw can have made x, and where the weight of one is infinite: beside it others are none.
        """
        noise = torch.randn(len(z), n, self.whitening.dim, generator=_generator(seed), dtype=torch.float32)
        log_weight = self._weighted(noise, self.network.told(z), seen, beta)[1].double()
        log_weight = log_weight.where(~log_weight.isnan(), -math.inf)
        best = log_weight.amax(dim=1, keepdim=True)
        weight = (log_weight - best).exp()  # NaN where the best is infinite
        share = weight.sum(dim=1).square() / (n * weight.square().sum(dim=1))
        return share.where((best[:, 0] > IMPOSSIBLE) & (best[:, 0] < math.inf), 0.0)

    def _walk(self, size: int, told: Tensor, seen: Tensor, beta: Tensor, generator: torch.Generator) -> Tensor:
        def log_weight(noise: Tensor, index: Tensor) -> Tensor:
            return self._weighted(noise, told[index], seen[index], beta[index])[1]

        options = TemperingOptions(particles=size, moves=_WALK.moves, ess=_WALK.ess)
        found = temper(log_weight, len(told), self.whitening.dim, (1.0, 1.0), options, generator)
        lost = int((found.log_likelihood <= IMPOSSIBLE).all(dim=1).sum())
        if lost:
            raise RefinementError(
                f"expected some theta that can have made x, but for {lost} of {len(told)} x the log-likelihood or the "
                f"prior is minus infinity or NaN for each of the {size} theta found; see that x is what the simulator "
                "can return and that the log-likelihood is finite there, or draw without refine"
            )
        order = found.index.argsort()
        u = self._weighted(found.u[order], told, seen, beta)[0].movedim(0, 1)
        # Neighbours are copies of each other where the moves were refused.
        return u[torch.randperm(size, generator=generator)]

    def _weighted(self, noise: Tensor, told: Tensor, seen: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
        """`u` `(m, p, d)` of `noise` `(m, p, d)`, and `g` `(m, p)`; `told` is what the network is told of each x."""
        transform = self.network.given(told[:, None], beta[:, None]).transform
        u = transform.inv(noise)
        log_q = log_normal(noise) + transform.log_abs_det_jacobian(u, noise)
        log_prior = log_normal(u) + self.whitening.log_prior_ratio(u)
        return u, log_prior + beta[:, None] * self.source.log_prob(u, seen[:, None]) - log_q


def _generator(seed: int | None) -> torch.Generator:
    """Without a seed, `torch.manual_seed` decides."""
    chosen = int(torch.randint(2**62, ())) if seed is None else operator.index(seed) % 2**63
    return torch.Generator().manual_seed(chosen)
