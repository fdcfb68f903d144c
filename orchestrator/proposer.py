"""Where the next simulations go: the mixture of prior, tempered-posterior and acquisition draws."""

from __future__ import annotations

__all__ = ["Proposer"]

import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.quasirandom import SobolEngine

from learners.posterior import TemperedPosterior
from learners.whitening import Whitening
from simulators.errors import ConfigError
from simulators.prior import prior_draws

from .acquisition import Acquisition
from .config_learner import AcquisitionConfig
from .proposal import ProposalKind, Proposals
from .trainer import Snapshot


class Proposer:
    """Makes proposals with their ids, seeds and densities. `chosen` may run in another thread than the rest.

    Arguments:
        prior: `p(theta)`.
        whitening: Its whitening.
        config: How points are chosen.
        seed: The campaign's seed.
        next_id: The first id that is free.
        acquisition: What chooses candidates.
        targeted: Whether the campaign has an observation.
    """

    def __init__(
        self,
        prior: Distribution,
        whitening: Whitening,
        config: AcquisitionConfig,
        seed: int,
        next_id: int,
        acquisition: Acquisition,
        targeted: bool,
    ) -> None:
        self.prior, self.whitening, self.config, self.seed = prior, whitening, config, seed
        self.next_id, self.acquisition = next_id, acquisition
        self.prior_share = config.share_of_prior(targeted)
        self._generator = torch.Generator().manual_seed(seed * 1_000_003 + next_id)
        self._sobol = SobolEngine(whitening.dim, scramble=True, seed=seed)
        if config.method == "sobol" and next_id:
            self._sobol.fast_forward(next_id)

    def from_prior(self, n: int, kind: ProposalKind = ProposalKind.PRIOR) -> Proposals:
        """Draws of the prior (a low-discrepancy sequence of it with `method: sobol`)."""
        if n <= 0:
            return Proposals.none(self.whitening.dim)
        if self.config.method == "sobol" and kind is ProposalKind.PRIOR:
            kind = ProposalKind.SOBOL
            uniform = self._sobol.draw(n, dtype=torch.float64).clamp(1e-9, 1 - 1e-9)
            theta = self.whitening.to_theta(torch.special.ndtri(uniform))
        else:
            theta = prior_draws(self.prior, n, self._generator).double()
        log_density = self.prior.log_prob(theta.float()).double()
        return self._proposals(theta, kind, log_density, None)

    def from_density(self, n: int, snapshot: Snapshot) -> Proposals:
        """Draws around the tempered posteriors, with their density."""
        if n <= 0:
            return Proposals.none(self.whitening.dim)
        u, beta, _ = snapshot.density.sample(n, self._generator)
        theta = self.whitening.to_theta(u)
        log_density = snapshot.density.log_prob(u).double() + self.whitening.log_abs_det(theta)
        return self._proposals(theta, ProposalKind.TEMPERED, log_density, beta)

    def chosen(self, n: int, snapshot: Snapshot, pending: Proposals) -> Proposals:
        """The acquisition function's choice, given everything that the snapshot has not seen; without ids yet.

        Its simulations start later or, if it comes late, never: see `numbered`.
        """
        if n <= 0:
            return Proposals.none(self.whitening.dim)
        in_flight = torch.zeros(0, self.whitening.dim)
        if len(pending):
            in_flight = self.whitening.to_u(torch.tensor(pending.theta)).float()
        candidates = snapshot.candidates
        n = min(n, len(candidates.u))
        rows = torch.as_tensor(self.acquisition.choose(candidates, n, in_flight, self._generator))
        if rows.shape != (n,) or rows.is_floating_point() or len(rows.unique()) < n:
            raise ConfigError(
                f"{type(self.acquisition).__name__}.choose: expected {n} different rows of the candidates, got "
                f"{tuple(rows.shape)} of {rows.dtype}, {len(rows.unique())} of them different"
            )
        theta = self.whitening.to_theta(candidates.u[rows])
        beta = candidates.beta[rows].numpy()
        return Proposals.of_kind(0, theta.numpy(), ProposalKind.ACQUISITION, self.seed, None, beta)

    def numbered(self, proposals: Proposals) -> Proposals:
        """Proposals with the ids and seeds of simulations that start now."""
        first = self.next_id
        self.next_id += len(proposals)
        return proposals.numbered(first, self.seed)

    def num_prior(self, n: int, snapshot: Snapshot | None) -> int:
        """How many of `n` proposals are to be draws of the prior, at random; all where no model steers."""
        if snapshot is None or not self.config.learns:
            return n
        share = torch.tensor(self.prior_share)
        return int(torch.binomial(torch.tensor(float(n)), share, generator=self._generator))

    def batch(self, n: int, num_prior: int, snapshot: Snapshot | None) -> Proposals:
        """`n` proposals without waiting: `num_prior` of the prior, the others from the latest density."""
        if snapshot is None or not self.config.learns:
            return self.from_prior(n)
        parts = [self.from_prior(num_prior), self.from_density(n - num_prior, snapshot)]
        order = torch.randperm(n, generator=self._generator).numpy()
        return Proposals.concatenate(parts).take(order)

    def for_calibration(self, n: int, posterior: TemperedPosterior | None) -> Proposals:
        """Draws to check the posterior with: of the prior, or of the posterior at its lowest temperature."""
        if n <= 0:
            return Proposals.none(self.whitening.dim)
        if posterior is None:
            return self.from_prior(n, ProposalKind.CALIBRATION_PRIOR)
        beta = posterior.beta_range[0]
        theta = posterior.sample((n,), beta=beta, seed=self.seed + self.next_id)
        log_density = posterior.log_prob(theta, beta=beta).double()
        betas = torch.full((n,), beta)
        return self._proposals(theta.double(), ProposalKind.CALIBRATION_TEMPERED, log_density, betas)

    def _proposals(
        self, theta: Tensor, kind: ProposalKind, log_density: Tensor | None, beta: Tensor | None
    ) -> Proposals:
        log_densities = None if log_density is None else log_density.numpy()
        betas = None if beta is None else beta.numpy()
        return self.numbered(Proposals.of_kind(0, theta.numpy(), kind, self.seed, log_densities, betas))
