r"""Simulation-based calibration (SBC): are the posterior's uncertainties honest?

For `theta* ~ p(theta)`, `x ~ p(x | theta*)` and draws `theta_l ~ q(theta | x, beta = 1)`, the rank of every
coordinate of `theta*` among the draws is uniform if `q` is right (Talts et al. 2018, arXiv 1804.06788).

The same holds with any population `g` in place of the prior, if the draws are weighted by `g / p`: then `g` *is*
the prior, and the weighted draws follow its posterior,

.. math:: r_i = \frac{\sum_l w_l\, 1[\theta_{l,i} < \theta^*_i]}{\sum_l w_l}, \qquad w_l = g(\theta_l) / p(\theta_l).

At `beta != 1` ranks are not uniform even for a perfect answer, hence beta = 1 only.
"""

from __future__ import annotations

__all__ = ["Calibration", "sbc_ranks"]

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .posterior import TemperedPosterior


@dataclass(frozen=True)
class Calibration:
    """SBC over one population.

    Attributes:
        population: What `theta*` was drawn from, in words.
        ranks: Ranks in [0, 1], `(n, d)`.
        p_values: Of the hypothesis that the ranks of a parameter are uniform, `(d,)` (Kolmogorov-Smirnov).
        effective_draws: Median effective number of draws behind a rank.
    """

    population: str
    ranks: np.ndarray
    p_values: np.ndarray
    effective_draws: float

    @property
    def passed(self) -> bool:
        """No parameter is rejected at 5 %, corrected for their number (Bonferroni)."""
        return bool((self.p_values >= 0.05 / len(self.p_values)).all())


@torch.no_grad()
def sbc_ranks(
    posterior: TemperedPosterior,
    theta: Tensor,
    x: Tensor,
    population: str,
    draws: int = 200,
    log_weight: Callable[[Tensor], Tensor] | None = None,
    seed: int = 0,
    refine: bool = False,
) -> Calibration:
    """Ranks of `theta` `(n, d)` among draws of the posterior at beta = 1 given `x` `(n, k)`.

    Arguments:
        posterior: The network to check.
        theta: Parameters that it was not trained on.
        x: Their simulations.
        population: What theta was drawn from, in words.
        draws: Posterior draws for each x; with weights, ten times as many are drawn.
        log_weight: `log g(theta) - log p(theta)` for `(m, d)`, if the population is not the prior.
        seed: Makes the ranks repeatable.
        refine: Check refined draws: what is still rejected is an error of what the network was distilled from.
    """
    n, d = theta.shape
    count = draws if log_weight is None else 10 * draws
    parts = x.split(max(1, 200_000 // count))
    with warnings.catch_warnings():
        # Rare x of the population are no surprise here.
        warnings.simplefilter("ignore")
        drawn = torch.cat(
            [posterior.sample_batched((count,), p, 1.0, seed + i, refine=refine) for i, p in enumerate(parts)],
            dim=1,
        )
    weights = torch.full((count, n), 1.0 / count)
    if log_weight is not None:
        log_w = log_weight(drawn.reshape(-1, d)).reshape(count, n).nan_to_num(-1e10, neginf=-1e10)
        weights = torch.softmax(log_w.float(), dim=0)
    below = (drawn < theta.float()).float()
    # The jitter makes the ranks of finitely many draws continuous, so that a continuous test applies.
    effective = 1 / weights.square().sum(dim=0)
    ranks = (weights.unsqueeze(-1) * below).sum(dim=0)
    generator = torch.Generator().manual_seed(seed)
    jitter = torch.rand(ranks.shape, generator=generator) / (effective[:, None] + 1)
    ranks = ranks * effective[:, None] / (effective[:, None] + 1) + jitter
    # Takes half a second that a report of what was checked need not wait for.
    from scipy import stats

    values = ranks.double().numpy().clip(0.0, 1.0)
    p_values = np.array([stats.kstest(values[:, i], "uniform").pvalue for i in range(d)])
    return Calibration(population, values, p_values, float(effective.median()))
