"""The Lotka-Volterra model of the Hudson Bay pelts (hares and lynx, 1900-1920).

The populations u (hares) and v (lynx), in thousands, obey

    du/dt = (alpha - beta_ v) u,    dv/dt = (delta u - gamma) v,    u(0) = hare0,  v(0) = lynx0,

and every year's pelts of both species are observed with log-normal noise of scales sigma_hare and
sigma_lynx. The model and its priors are those of B. Carpenter's Stan case study "Predator-Prey Population
Dynamics" (2018). That it is wrong in detail (no seasons, no trapping effort, no space) is known.
"""

from __future__ import annotations

import numpy as np
from scipy.integrate import odeint

YEARS = np.arange(21.0)


def _rates(log_state: np.ndarray, _t: float, alpha: float, beta: float, gamma: float, delta: float) -> tuple:
    # In logarithms the populations stay positive and the equations lose their stiffest part.
    u, v = np.exp(np.minimum(log_state, 50.0))
    return alpha - beta * v, delta * u - gamma


def simulate(theta: np.ndarray, seed: int) -> np.ndarray:
    """One history of pelts.

    Arguments:
        theta: `(8,)`: alpha, beta_, gamma, delta (1/year, 1/(year thousand)), hare0, lynx0 (thousands),
            sigma_hare, sigma_lynx (log scale).
        seed: Seed of the observation noise.

    Returns:
        `(42,)`: thousands of pelts, 21 years of hares, then 21 years of lynx.
    """
    alpha, beta, gamma, delta, hare0, lynx0, sigma_hare, sigma_lynx = theta
    log_state = odeint(
        _rates,
        np.log([hare0, lynx0]),
        YEARS,
        args=(alpha, beta, gamma, delta),
        rtol=1e-7,
        atol=1e-7,
        mxstep=20_000,
    )
    noise = np.random.default_rng(seed).normal(size=(21, 2)) * [sigma_hare, sigma_lynx]
    return np.exp(log_state + noise).T.ravel()
