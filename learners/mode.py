"""Where the density of a posterior is highest."""

from __future__ import annotations

__all__ = ["highest"]

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .whitening import Whitening


def highest(log_prob: Callable[[Tensor], Tensor], draws: Tensor, whitening: Whitening) -> Tensor:
    """The theta `(d,)` of highest `log_prob` `(n, d) -> (n,)`: the simplex of Nelder & Mead (1965) from the best draw.

    It moves in whitened parameters, hence never outside the prior.
    """
    # Takes a third of a second that draws need not wait for.
    from scipy.optimize import minimize

    def cost(u: np.ndarray) -> float:
        return -float(log_prob(whitening.to_theta(torch.as_tensor(u)[None])))

    start = whitening.to_u(draws[log_prob(draws).argmax()])
    found = minimize(cost, start.numpy(), method="Nelder-Mead", options={"maxiter": 200 * whitening.dim})
    return whitening.to_single(torch.as_tensor(found.x))
