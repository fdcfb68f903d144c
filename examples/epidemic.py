"""A stochastic epidemic whose simulation takes as long as the epidemic is large.

Susceptible people S are infected at the rate `theta_0 S I / N`, infected people I recover at the rate `theta_1 I`, in
continuous time (Gillespie 1977, J. Phys. Chem. 81, 2340): every infection and every recovery is one step of the
simulator. An epidemic that dies out takes a hundred steps, one that reaches all people takes 2 N. Observed are the
newly infected in each of 16 periods of ten days.

Rates are per day. A priori the basic reproduction number `theta_0 / theta_1` of a disease not seen before is 1.6 within
a factor of two: about a quarter of all epidemics die out, the others are up to a thousand times as costly.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch.distributions import Independent, LogNormal

PEOPLE, INFECTED = 100_000, 10
PERIODS, DAYS = 16, 10.0
PRIOR = Independent(LogNormal(torch.tensor([math.log(0.2), math.log(0.125)]), torch.tensor([0.7, 0.3])), 1)


def simulate(theta: np.ndarray, seed: int) -> np.ndarray:
    """Newly infected in each period, `(16,)`, for `theta` `(2,)`: infection and recovery rate."""
    infection, recovery = (float(rate) for rate in theta)
    per_pair = infection / PEOPLE
    rng = np.random.default_rng(seed)
    susceptible, infected, time = PEOPLE - INFECTED, INFECTED, 0.0
    counts = [0] * PERIODS
    end = PERIODS * DAYS
    while infected:
        # As many random numbers as a few thousand steps need, at once.
        for wait, choice in zip(rng.exponential(size=4096).tolist(), rng.random(4096).tolist(), strict=True):
            spreading = per_pair * susceptible
            total = infected * (spreading + recovery)
            time += wait / total
            if time >= end:
                return np.array(counts, dtype=float)
            if choice * (spreading + recovery) < spreading:
                susceptible -= 1
                infected += 1
                counts[int(time / DAYS)] += 1
            else:
                infected -= 1
                if not infected:
                    break
    return np.array(counts, dtype=float)
