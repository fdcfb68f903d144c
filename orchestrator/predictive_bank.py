r"""Pairs (theta, x) that were drawn once, reweighted to the posterior predictive at any temperature and observation.

With `theta_i` drawn from a density `r` and `x_i` from `p(x | theta_i)`, the pairs with weights

.. math:: w_i \propto q(\theta_i \mid x_o, \beta) / r(\theta_i)

are draws of the posterior predictive at `(x_o, beta)`. Pairs drawn at m temperatures count as one sample of their
mixture, `r = (1/m) sum_j q(theta | x_o, beta_j)` (Veach & Guibas 1995; Owen & Zhou 2000): at these temperatures no
weight exceeds m times the mean, and between them weights stay moderate. How many draws the weights leave is the
effective sample size `(sum w)^2 / sum w^2`.
"""

from __future__ import annotations

__all__ = ["PredictiveBank", "PredictiveDraws", "PredictivePath", "load_bank"]

import math
import warnings
import zipfile
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from scipy.special import logsumexp

from learners.posterior import TemperedPosterior
from simulators.outcome import Array

from .proposal import ProposalKind
from .run_directory import RunDirectory
from .store import SimulationStore, split_columns

#: Effective draws below which quantiles at 5 % and 95 % would be noise.
ENOUGH = 100
_MOST_SIMULATIONS = 20_000
_NODES = 33


class PredictiveDraws:
    """Weighted draws of a posterior predictive.

    Arguments:
        bank: Whose pairs they are.
        weights: `(n,)`, sum 1; all zero if none of the pairs is possible.
    """

    def __init__(self, bank: PredictiveBank, weights: Array) -> None:
        self.x, self.weights, self._bank = bank.x, weights, bank
        squares = float(np.square(weights).sum())
        #: Effective sample size.
        self.effective = 1.0 / squares if squares > 0.0 else 0.0

    @property
    def enough(self) -> bool:
        """Whether quantiles can be read off these draws."""
        return self.effective >= ENOUGH

    def resampled(self) -> Array:
        """As many draws of equal weight, `(n, k)`, by systematic resampling."""
        n = len(self.weights)
        rows = np.searchsorted(np.cumsum(self.weights), (np.arange(n) + 0.5) / n)
        return self.x[np.minimum(rows, n - 1)]

    def cdf(self, x: Array) -> Array:
        """Weight below each component of `x` `(k,)`, ties by half, `(k,)`."""
        below, upto = (self.x < x).T @ self.weights, (self.x <= x).T @ self.weights
        return (below + upto) / 2

    def own_cdf(self) -> Array:
        """The same for each draw, `(n, k)`."""
        total = np.cumsum(self.weights[self._bank.order], axis=0)
        total = np.concatenate([np.zeros((1, total.shape[1])), total])
        below, upto = (np.take_along_axis(total, rank, axis=0) for rank in self._bank.ranks)
        return (below + upto) / 2

    def quantiles(self, levels: Sequence[float]) -> Array:
        """Of each component, `(len(levels), k)`."""
        order = self._bank.order
        sorted_weights = self.weights[order]
        middle = np.cumsum(sorted_weights, axis=0) - sorted_weights / 2
        columns = [np.interp(levels, middle[:, j], self.x[order[:, j], j]) for j in range(self.x.shape[1])]
        return np.stack(columns, axis=1)


class PredictiveBank:
    """See the module.

    Arguments:
        theta: `(n, d)`.
        x: `(n, k)`; rows with NaN are left out.
        log_density: `log r(theta)`, `(n,)`.
        origin: Where x came from, in words.
    """

    def __init__(self, theta: Array, x: Array, log_density: Array, origin: str) -> None:
        kept = np.isfinite(x).all(axis=1) & np.isfinite(log_density)
        self.theta, self.x, self.log_density, self.origin = theta[kept], x[kept], log_density[kept], origin
        #: Each column's rows in ascending order, and how many rows lie below, and not above, each; `(n, k)`.
        self.order = np.argsort(self.x, axis=0, kind="stable")
        self.ranks = tuple(
            np.stack(
                [np.searchsorted(v[rows], v, side) for v, rows in zip(self.x.T, self.order.T, strict=True)], axis=1
            )
            for side in ("left", "right")
        )

    def __len__(self) -> int:
        return len(self.theta)

    def at(self, posterior: TemperedPosterior, beta: float, x_o: Array | None = None) -> PredictiveDraws:
        """The predictive at `beta`, given `x_o` `(k,)` or the posterior's own observation.

        Raises:
            TemperatureError, ObservationError: As `TemperedPosterior.log_prob`.
        """
        return self.weighted(_log_q(posterior, self.theta, beta, x_o))

    def weighted(self, log_q: Array) -> PredictiveDraws:
        """The predictive for the densities `log q(theta_i | x_o, beta)`, `(n,)`."""
        log_weight = log_q - self.log_density
        top = float(log_weight.max(initial=-math.inf))
        weights = np.exp(log_weight - top) if math.isfinite(top) else np.zeros(len(self))
        return PredictiveDraws(self, weights / max(float(weights.sum()), 1.0))


class PredictivePath:
    """The predictive of one observation at any temperature, within a millisecond.

    Along `log beta` the network is smooth: densities between `_NODES` temperatures are read off a cubic spline.

    Arguments:
        bank: The pairs.
        posterior: Asked here, and not again.
        x_o: `(k,)`.

    Raises:
        ObservationError: As `TemperedPosterior.log_prob`.
    """

    def __init__(self, bank: PredictiveBank, posterior: TemperedPosterior, x_o: Array) -> None:
        from scipy.interpolate import CubicSpline  # Slow to import; reports do without.

        self._bank = bank
        low, high = posterior.beta_range
        nodes = np.geomspace(low, high, _NODES) if high > low else np.array([low])
        densities = np.stack([_log_q(posterior, bank.theta, float(beta), x_o) for beta in nodes])
        # Outside the prior at one temperature is outside at all of them.
        self._possible = np.isfinite(densities).all(axis=0)
        known = densities[:, self._possible]
        self._along = CubicSpline(np.log(nodes), known) if len(nodes) > 1 else lambda _: known[0]

    def at(self, beta: float) -> PredictiveDraws:
        """The predictive at a `beta` within the range."""
        log_q = np.full(len(self._bank), -math.inf)
        log_q[self._possible] = self._along(math.log(beta))
        return self._bank.weighted(log_q)


def load_bank(run: RunDirectory, posterior: TemperedPosterior) -> PredictiveBank | None:
    """A campaign's bank: the surrogate's draws at the observation, else its own simulations of the prior; or None."""
    path = run.path / "predictive.npz"
    if posterior.default_x is not None and path.exists():
        try:
            with np.load(path, allow_pickle=False) as arrays:
                betas, theta, x = arrays["beta"], arrays["theta"].astype(np.float64), arrays["x"]
        except (KeyError, ValueError, OSError, zipfile.BadZipFile):
            return None
        theta, x = theta.reshape(-1, theta.shape[-1]), x.reshape(-1, x.shape[-1])
        each = [_log_q(posterior, theta, float(beta), None) for beta in betas]
        return PredictiveBank(theta, x, logsumexp(each, axis=0) - math.log(len(betas)), "the surrogate")
    columns, found = ["theta", "x", "proposal_log_density"], 0
    pieces = []
    for piece in run.store().pieces(columns, where=SimulationStore.successes(ProposalKind.PRIOR)):
        pieces.append(piece)
        found += len(piece)
        if found >= _MOST_SIMULATIONS:
            break
    if not found:
        return None
    table = pa.concat_tables(pieces).slice(0, _MOST_SIMULATIONS)
    theta, x = split_columns(table)
    return PredictiveBank(theta, x, table["proposal_log_density"].to_numpy(), "simulations of the prior")


def _log_q(posterior: TemperedPosterior, theta: Array, beta: float, x_o: Array | None) -> Array:
    with warnings.catch_warnings():
        # That x is far from all simulations is said elsewhere.
        warnings.simplefilter("ignore")
        return posterior.log_prob(theta, x=x_o, beta=beta).double().numpy()
