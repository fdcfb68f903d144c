"""Where the density of a posterior is highest."""

from __future__ import annotations

__all__ = ["highest"]

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from .posterior import TemperedPosterior


def highest(posterior: TemperedPosterior, x: Any, beta: float, num_starts: int, seed: int | None) -> Tensor:
    """The theta `(d,)` of highest density: the simplex of Nelder & Mead (1965) from the best of `num_starts` draws.

    It moves in whitened parameters, hence never outside the prior.
    """
    # Takes a third of a second that draws need not wait for.
    from scipy.optimize import minimize

    draws, whitening = posterior.sample((num_starts,), x=x, beta=beta, seed=seed), posterior.whitening

    def cost(u: np.ndarray) -> float:
        return -float(posterior.log_prob(whitening.to_theta(torch.as_tensor(u)[None]), x=x, beta=beta))

    with warnings.catch_warnings():
        # That x is far from all simulations was said once.
        warnings.simplefilter("ignore")
        start = whitening.to_u(draws[posterior.log_prob(draws, x=x, beta=beta).argmax()])
        found = minimize(cost, start.numpy(), method="Nelder-Mead", options={"maxiter": 200 * whitening.dim})
    return whitening.to_theta(torch.as_tensor(found.x)).float()
