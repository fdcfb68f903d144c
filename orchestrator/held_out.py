r"""How good a posterior is on simulations that it has not seen.

.. math:: S = \frac1n \sum_{i=1}^n \log q(\theta_i \mid x_i, \beta = 1), \qquad \theta_i \sim p(\theta),\;
    x_i \sim p(x \mid \theta_i)

over the campaign's simulations of prior draws that are kept to check the posterior. Higher is better; the exact
posterior has the highest expectation of all (a proper scoring rule; Gneiting & Raftery 2007).
"""

from __future__ import annotations

__all__ = ["HeldOut", "held_out"]

import warnings
from dataclasses import dataclass

import torch

from learners.posterior import TemperedPosterior

from .proposal import ProposalKind
from .run_directory import RunDirectory
from .store import SimulationStore, split_columns

#: Fewer rows say nothing about which of two posteriors is better.
_MIN_ROWS = 20


@dataclass(frozen=True)
class HeldOut:
    """Simulations kept from training.

    Attributes:
        theta: Draws of the prior, `(n, d)`.
        x: Their simulations, `(n, k)`.
    """

    theta: torch.Tensor
    x: torch.Tensor

    def __len__(self) -> int:
        return len(self.theta)

    def score(self, posterior: TemperedPosterior) -> float | None:
        """`S` in nats; None if the posterior does not know beta = 1."""
        low, high = posterior.beta_range
        if not low <= 1.0 <= high:
            return None
        with warnings.catch_warnings():
            # Some x of the prior predictive are always unusual.
            warnings.simplefilter("ignore")
            return float(posterior.log_prob(self.theta, self.x, beta=1.0).double().mean())


def held_out(run: RunDirectory, posterior: TemperedPosterior) -> HeldOut | None:
    """The simulations that `posterior` was not trained on; None if there are too few."""
    table = run.store().read(["theta", "x"], SimulationStore.successes(ProposalKind.CALIBRATION_PRIOR))
    if len(table) < _MIN_ROWS:
        return None
    theta, x = split_columns(table)
    if x.shape[1] != posterior.dim_x:
        return None
    return HeldOut(torch.as_tensor(theta), torch.as_tensor(x))
