"""What a learner was given, and which of its simulations are for what."""

from __future__ import annotations

__all__ = ["Material"]

from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import Distribution

from simulators.errors import DataError, ObservationError

from .simulations import Simulations, SimulationSet, truncated_weights
from .whitening import Whitening

#: Weights that differ by no more than this factor are all alike.
_UNLIKE = 1.05


class Material:
    """Simulations that are learned from, those that only score, and those that only an embedding sees.

    Arguments:
        prior, whitening: `p(theta)`, and what makes standard normals of it.
        x_o: Observations `(m, k)`, or None.
        scores: Share of the simulations that only score.
        embeds: Share of those that only an embedding learns from, and nothing else: of these it is too sure.
        generator: Decides which.
        device: Where networks learn.

    Attributes:
        data: All simulations.
        held_out: Which of them only score, boolean `(n,)`.
        shown: Which of them only the embedding learns from, boolean `(n,)`.
    """

    def __init__(
        self,
        prior: Distribution,
        whitening: Whitening,
        x_o: Tensor | None,
        scores: float,
        embeds: float,
        generator: torch.Generator,
        device: torch.device,
    ) -> None:
        self.prior, self.whitening, self.x_o = prior, whitening, x_o
        self.scores, self.embeds, self.generator, self.device = scores, embeds, generator, device
        self.data = SimulationSet(whitening.dim)
        self.held_out = torch.zeros(0, dtype=torch.bool)
        self.shown = torch.zeros(0, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.data)

    def add(self, simulations: Simulations, of_prior: bool = False) -> None:
        """Adds simulations; with `of_prior` their theta are known to be draws of the prior.

        Raises:
            DataError: Wrong shapes, or theta outside the prior's support.
            ObservationError: The observation has another length than the simulations.
        """
        if not len(simulations):
            return
        self._check(simulations)
        if of_prior:
            simulations = replace(simulations, log_proposal=self.log_prior(simulations.theta))
        self.data.add(simulations)
        fresh = self._some(len(simulations), self.scores)
        self.held_out = torch.cat([self.held_out, fresh])
        shown = torch.zeros(len(simulations), dtype=torch.bool)
        if self.embeds > 0:
            shown = self._some(len(simulations), self.embeds)
        self.shown = torch.cat([self.shown, shown & ~fresh])

    def _some(self, n: int, share: float) -> Tensor:
        """About that share of `n`, boolean `(n,)`."""
        return torch.rand(n, generator=self.generator, dtype=torch.float32) < share

    def _check(self, simulations: Simulations) -> None:
        if simulations.theta.shape[1] != self.whitening.dim:
            raise DataError(
                f"theta has {simulations.theta.shape[1]} columns, but the prior has dimension {self.whitening.dim}"
            )
        outside = int((~self.whitening.in_support(simulations.theta)).sum())
        if outside:
            raise DataError(
                f"{outside} of {len(simulations)} theta lie outside the prior's support; remove them, or use the "
                "prior that they were drawn from"
            )
        if len(self.data) and self.data.x.width != simulations.x.shape[1]:
            raise DataError(
                f"x has {simulations.x.shape[1]} columns, but the simulations so far have {self.data.x.width}; "
                "all must list the same quantities in the same order"
            )
        if self.x_o is not None and self.x_o.shape[1] != simulations.x.shape[1]:
            raise ObservationError(
                f"the observation has {self.x_o.shape[1]} numbers, but the simulator returns "
                f"{simulations.x.shape[1]}; both must list the same quantities in the same order"
            )

    @property
    def num_valid(self) -> int:
        """Simulations with a finite result."""
        return int(self.data.valid.sum())

    @property
    def valid(self) -> Tensor:
        """Positions of all with a finite result, `(n,)`."""
        return _positions(self.data.valid)

    @property
    def for_embedding(self) -> Tensor:
        """Positions of those that an embedding learns from, and of those that score it."""
        return _positions(self.data.valid & (self.shown | self.held_out))

    @property
    def unshown(self) -> Tensor:
        """Positions of those that the embedding has not learned from, failures included."""
        return _positions(~self.shown)

    @property
    def kept(self) -> Tensor:
        """Positions of those of them with a finite result."""
        return _positions(self.data.valid & ~self.shown)

    def u(self, rows: Tensor) -> Tensor:
        """Whitened parameters `(n, d)` of the simulations at `rows`, on the device."""
        return self.whitening.to_u(self.data.theta[rows]).float().to(self.device)

    def log_prior(self, theta: Tensor) -> Tensor:
        """`log p(theta)` of `theta` `(n, d)` in the support, `(n,)`."""
        return self.prior.log_prob(theta.float()).double()

    def log_weight(self, rows: Tensor) -> Tensor:
        """`log p(theta) - log g(theta)`, NaN where nobody knows g, `(n,)`."""
        return self.log_prior(self.data.theta[rows]) - self.data.log_proposal[rows]

    def worth(self, rows: Tensor) -> Tensor | None:
        """What simulations at `rows` count in scores, where every x counts as the prior says: `p(theta) / g(theta)`.

        Proposals favour what is cheap to simulate, and what is cheap may be the least of what is asked for. Where
        nobody knows g, a simulation counts as it is; where observations are given, g is where it matters.
        """
        if self.x_o is not None:
            return None
        log_weight = self.log_weight(rows)
        weight = truncated_weights(log_weight.nan_to_num(0.0, 0.0, -30.0)).float().to(self.device)
        return weight if weight.max() > _UNLIKE * weight.min() else None


def _positions(mask: Tensor) -> Tensor:
    return mask.nonzero().squeeze(-1)
