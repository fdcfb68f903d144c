"""A neuron that spikes: the Bernoulli generalized linear model of a white-noise stimulus.

    y_t ~ Bernoulli(sigmoid(theta_0 + sum_j theta_j s_{t-j+1})),   t = 1..100, j = 1..9

with theta_0 an offset and theta_1..9 a smooth filter on the latest stimulus `s`. Conditioned on is the sufficient
summary: the number of spikes and the stimulus summed before spikes, `X^T y` with the design matrix `X`.

Task T.5 of Lueckmann et al. (2021), arXiv 2101.04653; the stimulus is their frozen one (NumPy's `RandomState(42)`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch.distributions import MultivariateNormal

STEPS, FILTER = 100, 9


def _design() -> np.ndarray:
    """`(100, 10)`: ones, then the stimulus delayed by 0 to 8 steps."""
    stimulus = np.random.RandomState(42).randn(STEPS)
    columns = [np.concatenate([np.zeros(j), stimulus[: STEPS - j]]) for j in range(FILTER)]
    return np.stack([np.ones(STEPS), *columns], axis=1)


def _precision() -> torch.Tensor:
    """Variance 2 for the offset; second differences of the filter are small."""
    step = torch.eye(FILTER) - torch.diag(torch.ones(FILTER - 1), -1)
    smooth = step @ step + torch.diag(torch.arange(FILTER) / FILTER).sqrt()
    return torch.block_diag(torch.tensor([[0.5]]), smooth.mT @ smooth)


DESIGN = _design()
PRIOR = MultivariateNormal(torch.zeros(FILTER + 1), precision_matrix=_precision())


def simulate(theta: np.ndarray, seed: int) -> np.ndarray:
    """Spikes of neurons `theta` `(n, 10)`, summarized, `(n, 10)`."""
    drive = np.clip(np.asarray(theta, dtype=float) @ DESIGN.T, -50, 50)
    spikes = np.random.default_rng(seed).random(drive.shape) < 1 / (1 + np.exp(-drive))
    return spikes @ DESIGN
