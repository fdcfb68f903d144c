r"""The tempering sampler: all temperatures of many posteriors in one walk.

A sequential Monte Carlo sampler (Del Moral, Doucet & Jasra 2006) carries particles of

.. math:: p_\beta(u \mid x) \propto \mathcal N(u; 0, I)\, e^{r(u)}\, e^{\beta\, \ell(u, x)}

from the prior (`beta = 0`) up to `beta_high`, for a batch of `x` at once. Each `x` climbs its own ladder: the
next beta is the largest that keeps the conditional effective sample size. After resampling, the particles move by
Metropolis steps: differential evolution between particles (ter Braak & Vrugt 2008), which adapts to scale and
correlation and jumps between modes, and preconditioned Crank-Nicolson steps, which preserve the prior. If it is known
about where the posteriors lie (`places.py`), every third move proposes that.
"""

from __future__ import annotations

__all__ = ["IMPOSSIBLE", "TemperedParticles", "TemperingOptions", "temper"]

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .places import Places

#: Log-likelihood of what cannot have made x: a log-likelihood may have any constant, and losses any unit.
IMPOSSIBLE = -1e30
#: Steps to the next rung while every particle is impossible.
_SEARCHES = 20

#: `log_likelihood(u, x)`: `u` `(n, p, d)`, index of x `(n,)` -> `(n, p)`; what beta multiplies.
LogLikelihood = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class TemperingOptions:
    """How the walk is made.

    Arguments:
        particles: Particles for each x.
        moves: Metropolis moves a rung.
        ess: Share of the effective sample size that a step up the ladder keeps.
        max_ratio: Typical largest ratio of neighbouring betas inside the range asked for.
    """

    particles: int = 128
    moves: int = 8
    ess: float = 0.6
    max_ratio: float = 1.5


@dataclass(frozen=True)
class TemperedParticles:
    """Draws of `p_beta(u | x)` at the rungs of every ladder.

    Attributes:
        u: `(m, p, d)`, one row a rung of one x.
        index: Which x each row belongs to, `(m,)`.
        beta: Temperature of each row, `(m,)`.
        log_likelihood: `l(u, x)` in double precision, `(m, p)`; `IMPOSSIBLE` where u cannot have made x.
        ess: Effective sample size, as a share, of the step that led to the row, `(m,)`.
        acceptance: Share of accepted moves at the row, `(m,)`.
    """

    u: Tensor
    index: Tensor
    beta: Tensor
    log_likelihood: Tensor
    ess: Tensor
    acceptance: Tensor


@torch.no_grad()
def temper(
    log_likelihood: LogLikelihood,
    num_x: int,
    dim: int,
    beta_range: tuple[float, float],
    options: TemperingOptions,
    generator: torch.Generator,
    log_prior_ratio: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | str = "cpu",
    rungs: tuple[float, ...] = (),
    places: Places | None = None,
) -> TemperedParticles:
    """Walks from the prior up to `beta_range[1]` for `num_x` observations at once.

    Arguments:
        log_likelihood: See `LogLikelihood`; NaN counts as impossible.
        num_x: Number of observations; the second argument of `log_likelihood` are indices below it.
        dim: Dimension of `u`.
        beta_range: Lowest and highest temperature whose particles are wanted.
        options: See `TemperingOptions`.
        generator: Source of randomness, on the CPU (draws are moved to `device`).
        log_prior_ratio: `r(u)`, where the whitened prior is not exactly normal.
        device: Where particles live.
        rungs: Betas at which every ladder must have a rung (the ends of the range always are).
        places: Where the posteriors may lie.

    Returns:
        Particles at every rung with `beta` in `beta_range`.
    """
    low, high = beta_range
    stops = torch.tensor(sorted({low, high, *(b for b in rungs if low < b < high)}), dtype=torch.float64)
    walk = _Walk(log_likelihood, num_x, dim, options, generator, log_prior_ratio, torch.device(device), places)
    rows: list[tuple[Tensor, ...]] = []
    while bool((walk.beta < high).any()):
        active = (walk.beta < high).nonzero().squeeze(-1)
        ess = walk.climb(active, stops, low, options)
        acceptance = walk.move(active, options.moves)
        wanted = walk.beta[active] >= low * (1 - 1e-9)
        chosen = active[wanted]
        rows.append(
            (
                walk.u[chosen].clone(),
                chosen,
                walk.beta[chosen].clone(),
                walk.ell[chosen].clone(),
                ess[wanted],
                acceptance[wanted],
            )
        )
    columns = [torch.cat(column) for column in zip(*rows, strict=True)]
    return TemperedParticles(*columns)


class _Walk:
    """State of the walk: particles, their log-likelihood and the temperature of each x."""

    def __init__(
        self,
        log_likelihood: LogLikelihood,
        num_x: int,
        dim: int,
        options: TemperingOptions,
        generator: torch.Generator,
        log_prior_ratio: Callable[[Tensor], Tensor] | None,
        device: torch.device,
        places: Places | None,
    ) -> None:
        self.log_likelihood, self.log_prior_ratio, self.places = log_likelihood, log_prior_ratio, places
        self.generator, self.device = generator, device
        self.dim, self.step = dim, torch.full((num_x,), 1.0, dtype=torch.float32, device=device)
        # Every x has a ladder of its own spacing, so that together they cover the temperatures densely.
        self.max_ratio = options.max_ratio ** (0.5 + self._rand(num_x).double())
        self.u = self._randn(num_x, options.particles, dim)
        self.beta = torch.zeros(num_x, dtype=torch.float64)
        self.ell, self.ratio = self._evaluate(self.u, torch.arange(num_x))
        if bool(self.ratio.any()):
            # Normal draws become draws of the prior.
            self._resample(torch.arange(num_x), torch.softmax(self.ratio.double(), dim=-1))
            self.move(torch.arange(num_x), options.moves)

    def climb(self, active: Tensor, stops: Tensor, low: float, options: TemperingOptions) -> Tensor:
        """Raises beta of the active x by their own steps and resamples; returns the ESS kept, `(a,)`."""
        beta, ell = self.beta[active], self.ell[active]
        following = stops[torch.searchsorted(stops, beta, right=True).clamp(max=len(stops) - 1)]
        capped = torch.where(beta >= low * (1 - 1e-9), beta * self.max_ratio[active], following)
        limit = torch.minimum(following, capped) - beta
        small, large = torch.zeros_like(limit), limit.clone()
        # Where nothing is possible yet, all count alike and say nothing: a few short steps, and moves within the prior.
        lost = (ell <= IMPOSSIBLE).all(dim=-1).cpu()
        enough = (_ess(ell, large) >= options.ess) & ~lost
        for _ in range(25):
            middle = (small + large) / 2
            good = _ess(ell, middle) >= options.ess
            small, large = torch.where(good, middle, small), torch.where(good, large, middle)
        # A floor keeps the climb finite where the likelihood is a needle; moves then do the rest.
        increment = torch.where(enough, limit, torch.maximum(small, limit * 1e-4)).minimum(limit)
        increment = torch.where(lost, torch.minimum(limit, following / _SEARCHES), increment)
        weights = torch.softmax(increment[:, None].to(ell.device) * ell, dim=-1)
        ess = (1 / (weights.square().sum(-1) * weights.shape[-1])).cpu()
        self._resample(active, weights)
        there = (enough | lost) & (increment == following - beta)
        self.beta[active] = torch.where(there, following, beta + increment)
        return ess

    def _resample(self, active: Tensor, weights: Tensor) -> None:
        """Draws the particles of the active x anew in proportion to `weights` `(a, p)`."""
        chosen = _systematic(weights, self._rand(len(active), 1)).to(self.device)
        self.u[active] = self.u[active].gather(1, chosen[..., None].expand(-1, -1, self.dim))
        self.ell[active] = self.ell[active].gather(1, chosen)
        self.ratio[active] = self.ratio[active].gather(1, chosen)

    def move(self, active: Tensor, moves: int) -> Tensor:
        """Metropolis moves of the active x; returns their mean acceptance, `(a,)`."""
        accepted_total = torch.zeros(len(active), dtype=torch.float32)
        place = None if self.places is None else self.places.at(active, self.beta[active])
        for k in range(moves):
            u, beta = self.u[active], self.beta[active].to(self.device)[:, None]
            placed = place if k % 3 == 0 else None
            crank = placed is None and k % 4 == 3
            if placed is not None:
                proposal = placed.sample(u.shape[1], self._randn, self._rand)
            else:
                proposal = self._crank_nicolson(u) if crank else self._evolve(u, active, jump=k % 4 == 2)
            ell, ratio = self._evaluate(proposal, active)
            # From what is impossible the prior leads out: any gain would take a particle to where it never comes back.
            gain = torch.where(self.ell[active] > IMPOSSIBLE, beta * (ell - self.ell[active]), 0.0)
            log_accept = gain + ratio - self.ratio[active]
            if not crank:
                log_accept = log_accept + 0.5 * (u.square().sum(-1) - proposal.square().sum(-1))
            if placed is not None:
                log_accept = log_accept + placed.log_prob(u) - placed.log_prob(proposal)
            accept = self._rand(*log_accept.shape).log().to(self.device) < log_accept
            self.u[active] = torch.where(accept[..., None], proposal, u)
            self.ell[active] = torch.where(accept, ell, self.ell[active])
            self.ratio[active] = torch.where(accept, ratio, self.ratio[active])
            rate = accept.float().mean(-1)
            accepted_total += rate.cpu() / moves
            if placed is None and k % 4 in (0, 1):
                self.step[active] = (self.step[active] * torch.exp(rate - 0.25)).clamp(0.05, 2.0)
        return accepted_total

    def _evolve(self, u: Tensor, active: Tensor, jump: bool) -> Tensor:
        """`u + gamma (u_a - u_b) + noise`; `gamma = 1` carries particles from mode to mode.

        Two random cyclic shifts give the partners: the same for every particle, drawn independently of
        the particles, so that the proposal is symmetric.
        """
        n, p, d = u.shape
        a, b = (1 + torch.randperm(p - 1, generator=self.generator)[:2]).tolist()
        difference = u.roll(a, dims=1) - u.roll(b, dims=1)
        scale = 2.38 / math.sqrt(2 * d)
        gamma = torch.ones_like(self.step[active]) if jump else scale * self.step[active]
        noise = 0.02 * difference.abs().mean(dim=1, keepdim=True) * self._randn(n, p, d)
        return u + gamma[:, None, None] * difference + noise

    def _crank_nicolson(self, u: Tensor) -> Tensor:
        """`rho u + sqrt(1 - rho^2) noise`, one `rho` a coordinate and rung: reversible for the prior."""
        n, p, d = u.shape
        size = torch.empty(n, 1, d, dtype=torch.float32).uniform_(0.05, 0.9, generator=self.generator).to(self.device)
        return torch.sqrt(1 - size.square()) * u + size * self._randn(n, p, d)

    def _evaluate(self, u: Tensor, active: Tensor) -> tuple[Tensor, Tensor]:
        # Only differences count, and beside a large constant single precision has none.
        ell = self.log_likelihood(u, active).double().nan_to_num(IMPOSSIBLE, posinf=IMPOSSIBLE, neginf=IMPOSSIBLE)
        ratio = torch.zeros_like(ell) if self.log_prior_ratio is None else self.log_prior_ratio(u)
        return ell.clamp(min=IMPOSSIBLE), ratio.nan_to_num(-1e10, posinf=-1e10, neginf=-1e10)

    def _randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float32).to(self.device)

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator, dtype=torch.float32)


def _ess(ell: Tensor, increment: Tensor) -> Tensor:
    """Effective sample size, as a share, of weights `exp(increment * ell)`: `(a, p), (a,) -> (a,)`."""
    weights = torch.softmax(increment[:, None].to(ell.device) * ell, dim=-1)
    return (1 / (weights.square().sum(-1) * weights.shape[-1])).cpu()


def _systematic(weights: Tensor, offset: Tensor) -> Tensor:
    """Systematic resampling, `(a, p)` weights and `(a, 1)` offsets -> `(a, p)` indices."""
    p = weights.shape[-1]
    positions = (torch.arange(p) + offset.double()) / p
    cumulative = weights.cpu().cumsum(-1)
    return torch.searchsorted(cumulative, positions).clamp(max=p - 1)
