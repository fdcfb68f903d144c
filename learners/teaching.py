"""What the network learns from: tempered particles of the x that matter, joint draws of theta and x, and a guide."""

from __future__ import annotations

__all__ = ["Teaching"]

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch.distributions import Distribution

from simulators.errors import DataError
from simulators.prior import prior_draws

from .distillation import DistillationOptions
from .guide import Guide, fit_guide
from .options import LearnerOptions
from .pairs import JointPairs, ParticleBank, Target
from .places import Places
from .rows import RowView, evenly
from .scoring import ROWS
from .simulations import truncated_weights
from .source import Source
from .tempered_density import TemperedDensity
from .tempering import TemperedParticles, TemperingOptions, temper
from .threads import Threads
from .whitening import Whitening, log_normal

#: Numbers of x in the pairs that a guide learns from: of wide x fewer pairs do.
_MOST_NUMBERS = 20_000_000
#: Walks for the observations of a final training.
_COPIES = 4
#: So many draws are not all beyond reach by chance.
_MANY = 100


@dataclass(frozen=True)
class Teaching:
    """See the module. Where the source draws no x, the simulated ones serve.

    Attributes:
        prior, whitening: `p(theta)` and its whitening.
        source: What beta multiplies.
        u: Whitened parameters of the valid simulations, `(n, d)`.
        z: Their scaled data, `(n, k)`.
        log_weight: `log p(theta) - log g(theta)` of each, not finite for those that may not be learned from, `(n,)`.
        z_o: Scaled observations `(m, k)` of a targeted campaign, or None.
        beta_range: Lowest and highest temperature.
        options: Sizes.
        generator: Source of randomness on the CPU.
        x, x_o: The data of `z` and `z_o` as they are, if the source sees x itself; else None.
        threads: What shares the work.
    """

    prior: Distribution
    whitening: Whitening
    source: Source
    u: Tensor
    z: Tensor
    log_weight: Tensor
    z_o: Tensor | None
    beta_range: tuple[float, float]
    options: LearnerOptions
    generator: torch.Generator
    x: RowView | None = None
    x_o: Tensor | None = None
    threads: Threads = field(default_factory=lambda: Threads(1))

    def observed(self, copies: int = 1, guide: Guide | None = None) -> ParticleBank:
        """Particles for the observations of a targeted campaign, walked for so many times in all."""
        assert self.z_o is not None, "there is no observation"
        repeats = max(1, copies // len(self.z_o))
        x_o = None if self.x_o is None else self.x_o.repeat(repeats, 1)
        return self._bank(self.z_o.repeat(repeats, 1), x_o, self.options.focus, self.options.focus_share, guide)

    def banks(self, final: bool, guide: Guide | None = None) -> list[ParticleBank]:
        """Particles for the observation, for x like it, and for x from everywhere that was simulated."""
        size = self.options.bank if final else self.options.bank // 8
        simulations = size // 2 if self.source.draws_x else size
        rows = torch.randperm(len(self.z), generator=self.generator)[:simulations]
        simulated, x = self.z[rows.to(self.z.device)], None if self.x is None else self.x[rows]
        walk = self.options.tempering
        if self.z_o is None:
            return [self._bank(self._joined(simulated, size, self._prior_u), x, walk, 1.0, guide)]
        focus = self.observed(_COPIES if final else 1, guide)

        def like_observed(n: int) -> Tensor:
            density = TemperedDensity.from_particles(focus.particles, 1000, self.generator)
            return density.sample(n, self.generator)[0].to(self.z.device)

        return [focus, self._bank(self._joined(simulated, size, like_observed), x, walk, 1 - focus.share, guide)]

    def _bank(
        self, z: Tensor, x: Tensor | None, options: TemperingOptions, share: float, guide: Guide | None
    ) -> ParticleBank:
        places = None if guide is None else guide.places(z)
        return ParticleBank(self.temper(z if x is None else x, options, places=places), z, share, x)

    def temper(
        self,
        seen: Tensor,
        options: TemperingOptions,
        beta_range: tuple[float, float] | None = None,
        places: Places | None = None,
    ) -> TemperedParticles:
        """Particles for what the source sees of x `(m, k)`, at temperatures of `beta_range` or those of training."""
        target = self.target()
        return temper(
            lambda u, index: target.log_likelihood(u, seen[index.to(seen.device)]),
            len(seen),
            self.whitening.dim,
            beta_range or self.beta_range,
            options,
            self.generator,
            self.whitening.log_prior_ratio,
            self.z.device,
            rungs=(1.0,),
            places=places,
        )

    def walk(self, seen: Tensor, beta: float, n: int, places: Places | None = None) -> Tensor:
        """`n` draws `u` `(n, d)` of the tempered posterior of one x; of which the source sees that, `(1, k)`."""
        # Few particles know neither where to go nor how far: more walk than are asked for.
        particles = max(n, self.options.focus.particles)
        walked = self.temper(seen, replace(self.options.focus, particles=particles), (beta, beta), places)
        return evenly(walked.u[-1], n)

    @torch.no_grad()
    def guide(self, on_tenth: Callable[[int, float], None] | None = None) -> Guide | None:
        """What finds the posteriors of the source; of a targeted campaign half learned where the observations' lie.

        None if it does not find them, which is where they are of several pieces; and if the source draws no x, or
        counts, of which its emulator is no model.
        """
        sizes, options = self.options.guide, self.options.distillation
        if sizes is None or not self.source.draws_x or self.source.draws_cells:
            return None
        n = min(options.pairs, _MOST_NUMBERS // self.z.shape[1])
        u = self._prior_u(n if self.z_o is None else n // 2)
        if self.z_o is not None:
            density = TemperedDensity.from_particles(self.observed().particles, 1000, self.generator)
            u = torch.cat([u, density.sample(n - len(u), self.generator)[0].to(u)])
        u, z = self._predicted(u)
        middle = self.source.middle(u)
        with torch.enable_grad():
            steps, batch_size = options.steps, options.batch_size
            learning = self.generator, on_tenth, self.threads, self._slopes
            return fit_guide(u, z, middle, sizes, steps, batch_size, *learning)

    def _slopes(self, u: Tensor, z: Tensor) -> Tensor:
        """The gradient of `log p(z | u)` with respect to `u` `(n, d)`, for pairs with `z` `(n, k)`."""

        @torch.enable_grad()  # which a thread does not take over from who waits for it
        def slope(u: Tensor, z: Tensor) -> Tensor:
            u = u.detach().requires_grad_()
            log_p = self.source.log_prob(u.unsqueeze(1), z.unsqueeze(1))
            return torch.autograd.grad(log_p.sum(), u)[0].nan_to_num(0.0, 0.0, 0.0)

        return torch.cat(self.threads.map(slope, u.split(ROWS), z.split(ROWS)))

    def target(self) -> Target:
        """The posteriors up to a constant."""

        @torch.no_grad()
        def evaluate(u: Tensor, seen: Tensor) -> Tensor:
            return self.source.log_prob(u, seen[:, None, :])

        def log_likelihood(u: Tensor, seen: Tensor) -> Tensor:
            parts = max(1, min(self.threads.count, len(u)))
            return torch.cat(self.threads.map(evaluate, u.tensor_split(parts), seen.tensor_split(parts)))

        return Target(lambda u: log_normal(u) + self.whitening.log_prior_ratio(u), log_likelihood)

    @torch.no_grad()
    def joint_pairs(self, options: DistillationOptions) -> list[JointPairs]:
        """Posterior draws at beta = 1: fresh ones and real ones.

        Where they would be none (with a cost or a function of the user), pairs of share zero: their x are learned from,
        but not by likelihood.
        """
        if not self.beta_range[0] <= 1.0 <= self.beta_range[1] or options.joint_share <= 0:
            return []
        if not self.source.pairs_are_draws:
            return [JointPairs(self.u, self.z, torch.ones(len(self.u)), 0.0, x=self.x)]
        real = self._real_pairs(options)
        if not self.source.draws_x:
            return [] if real is None else [real]
        share = options.joint_share - (0.0 if real is None else real.share)
        fresh = self._fresh_pairs(round(share * options.pairs), share)
        return [fresh] if real is None else [fresh, real]

    @torch.no_grad()
    def _fresh_pairs(self, n: int, share: float) -> JointPairs:
        """About `n` draws of the prior and the source."""
        u, z = self._predicted(self._prior_u(n))
        weight = self.source.log_valid(u).exp()
        return JointPairs(u, z, weight, share, others=partial(self._fresh_pairs, n, share))

    def _real_pairs(self, options: DistillationOptions) -> JointPairs | None:
        """Simulations proposed from a known density, weighted to the prior."""
        known = self.log_weight.isfinite()
        if not known.any():
            return None
        weight = truncated_weights(self.log_weight[known])
        # Repeating few real pairs many times would only teach the network to remember them; few are those that count.
        most = options.real_share if self.source.draws_x else options.joint_share
        effective = float(weight.sum().square() / weight.square().sum())
        share = min(most, options.joint_share, 20 * effective / options.pairs)
        rows = known.nonzero().squeeze(-1).to(self.z.device)
        return JointPairs(self.u, self.z, weight.float(), share, rows, x=self.x)

    def _joined(self, simulated: Tensor, size: int, fresh_u: Callable[[int], Tensor]) -> Tensor:
        """`simulated`, and draws of the source up to `size` in all."""
        if not self.source.draws_x:
            return simulated
        return torch.cat([simulated, self._predicted(fresh_u(size - len(simulated)))[1]])

    @torch.no_grad()
    def _predicted(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """`u` with one draw `z` of the source each, without draws beyond twice the range of the simulations.

        The tails of a learned density may reach anywhere, 1e27 included, where nothing can be trained.

        Raises:
            DataError: None of many is left.
        """
        z = self.source.sample(u, self.generator)
        low, high = self.z.amin(dim=0), self.z.amax(dim=0)
        reach = (high - low) / 2
        # Constants are learned as if they were spread over a cell of some width.
        kept = ((z >= low - reach) & (z <= high + reach) | (reach == 0)).all(dim=-1)
        if len(u) >= _MANY and not kept.any():
            raise DataError(
                f"the surrogate has not learned x: none of its {len(u)} draws lies within twice the range of the "
                "simulations; look for columns of x with few huge values and leave them out or take their logarithm, "
                "give more simulations, or choose other members"
            )
        return u[kept], z[kept]

    def _prior_u(self, n: int) -> Tensor:
        """Whitened draws of the prior, `(n, d)`."""
        theta = prior_draws(self.prior, n, self.generator)
        return self.whitening.to_u(theta).float().to(self.z.device)
