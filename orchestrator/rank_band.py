r"""How far the ranks of a calibrated posterior may stray from uniform: a simultaneous band for their ECDF.

For n uniform ranks, `n F(z)` is binomial at every z. Pointwise intervals of level `1 - gamma` hold the whole curve
less often than that; gamma is chosen by simulation so that they hold it with probability 95 % (Säilynoja, Bürkner &
Vehtari 2022, arXiv 2103.10522, algorithm 1):

.. math:: \gamma(u) = 2 \min_i \min\{ P(B_i \le n F_u(z_i)),\ P(B_i \ge n F_u(z_i)) \},
    \qquad B_i \sim \mathrm{Bin}(n, z_i),

and gamma is the 5 % quantile of `gamma(u)` over uniform samples u.
"""

from __future__ import annotations

__all__ = ["ecdf", "rank_band"]

from functools import lru_cache

import numpy as np
from scipy.special import bdtr, bdtrc

from simulators.outcome import Array

_SIMULATIONS = 10_000
_POINTS = 100
_SEED = 0


def ecdf(ranks: Array, z: Array) -> Array:
    """Share of `ranks` `(n,)` at or below each of `z` `(m,)`."""
    return np.searchsorted(np.sort(ranks), z, side="right") / max(1, len(ranks))


@lru_cache(maxsize=32)
def rank_band(n: int, coverage: float = 0.95) -> tuple[Array, Array, Array]:
    """`z (m,)`, and the least and greatest ECDF `(m,)` there.

    The whole ECDF of n uniform ranks stays between them with probability `coverage`.
    """
    z = np.arange(1, min(n, _POINTS)) / min(n, _POINTS) if n > 1 else np.array([0.5])
    rng = np.random.default_rng(_SEED)
    # Counts below every z of uniform samples: sums of multinomial counts of the cells between.
    cells = np.diff(z, prepend=0.0, append=1.0)
    counts = rng.multinomial(n, cells / cells.sum(), size=_SIMULATIONS)[:, :-1].cumsum(axis=1)
    outcomes, place = np.arange(n + 1)[:, None], np.arange(z.size)
    below, above = bdtr(outcomes, n, z), bdtrc(outcomes - 1, n, z)
    tails = np.minimum(below[counts, place], above[counts, place])
    # A hair less than gamma: the level itself is attained by samples, which are to be inside.
    gamma = (1.0 - 1e-9) * float(np.quantile(2.0 * tails.min(axis=1), 1.0 - coverage, method="lower"))
    least = (below < gamma / 2).sum(axis=0)
    return z, least / n, (n - least[::-1]) / n  # both the distribution and z are symmetric
