r"""Which temperature to use: the largest beta at which the posterior predictive still reaches the observation.

For each beta the observation is compared with draws of the posterior predictive, `theta ~ q(theta | x_o, beta)` and
`x ~ p(x | theta)`, by the mean of squared normal scores,

.. math:: T(x) = \frac1k \sum_j \Phi^{-1}(F_j(x_j))^2, \qquad p(\beta) = P\{T(x) \ge T(x_o)\},

where `F_j` is the distribution of component j of the draws. Ranks make it blind to units and to wild tails, and the
draws' own dependence enters through the distribution of T. Recommended is the largest `beta <= 1` with `p >= 0.05`.

This is a check of fit (Gelman, Meng & Stern 1996), a use of such checks that Zafar & Nicholls (2024, arXiv 2410.01475)
explore. It proves nothing: docs/method.md says what it cannot tell. Wu & Martin (2023, arXiv 2012.11349) compare other
rules.
"""

from __future__ import annotations

__all__ = ["LEVEL", "Recommendation", "recommend"]

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from learners.posterior import TemperedPosterior
from simulators.outcome import Array

from .predictive_bank import PredictiveBank, PredictiveDraws

LEVEL = 0.05
_GRID = 21


@dataclass(frozen=True, eq=False)
class Recommendation:
    """What the check found.

    Attributes:
        beta: Temperatures that were tried, ascending, `(m,)`, none above 1.
        p_value: p at each, `(m,)`.
        recommended: The largest beta with `p >= 0.05`, or None.
    """

    beta: Array
    p_value: Array
    recommended: float | None

    @property
    def verdict(self) -> str:
        """What follows, in a sentence or two."""
        low, top = float(self.beta[0]), float(self.beta[-1])
        if self.recommended is None:
            return (
                f"None in the trained range: even at β = {low:g} the observation is extreme under what the posterior "
                "predicts. A lower temperature will not mend that; look for what the simulator lacks."
            )
        if self.recommended == top:
            reason = "so nothing here speaks against Bayes' rule" if top == 1.0 else "the highest that was tried"
            return f"At β = {top:g} the observation is not extreme under what the posterior predicts, {reason}."
        return (
            f"Just above β = {self.recommended:.2g} the observation is extreme under what the posterior predicts: the "
            "parameters that the posterior leaves do not reproduce it. At this β they still do."
        )


def recommend(posterior: TemperedPosterior, bank: PredictiveBank, x_o: Array) -> Recommendation | None:
    """The recommended temperature for the observation `x_o` `(k,)`.

    None if no `beta <= 1` was trained, or the bank has too few draws for this observation at some of them.
    """
    low, high = posterior.beta_range
    if low > 1.0:
        return None
    betas = np.geomspace(low, min(high, 1.0), _GRID if low < min(high, 1.0) else 1)
    betas[-1] = min(high, 1.0)
    draws = [bank.at(posterior, float(beta), x_o) for beta in betas]
    if not all(d.enough for d in draws):
        return None
    p = np.array([p_value(d, x_o) for d in draws])
    fitting = betas[p >= LEVEL]
    return Recommendation(betas, p, float(fitting.max()) if len(fitting) else None)


def p_value(draws: PredictiveDraws, x_o: Array) -> float:
    """`P{T(x) >= T(x_o)}` under the draws, the observation counted as one of them (hence never 0)."""
    n = draws.effective
    observed = _mean_square_score(draws.cdf(x_o), n)
    share = float(draws.weights[_mean_square_score(draws.own_cdf(), n) >= observed].sum())
    return (n * share + 1.0) / (n + 1.0)


def _mean_square_score(cdf: Array, n: float) -> Array:
    """`T` of `F_j(x_j)` `(*, k)`, `(*,)`; values beyond all draws count as the outermost that n draws can show."""
    edge = 0.5 / n
    return np.square(ndtri(np.clip(cdf, edge, 1.0 - edge))).mean(axis=-1)
