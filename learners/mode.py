r"""Where the density of a posterior is highest.

.. math:: \hat\theta = \arg\max_\theta\, \log q(\theta \mid x, \beta)
    = T^{-1}\Big(\arg\max_u\, \log q(u \mid x, \beta) + \log \big|\partial u / \partial \theta\big|\Big)
"""

from __future__ import annotations

__all__ = ["highest"]

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .whitening import MarginalWhitening, Whitening

#: In u, whose scale is one; the volume is known in double precision.
_STEP = 1e-4
#: A spline's density has kinks, at which a climb may stop too early: then it goes on from what is higher around it.
_CLIMBS, _ITERATIONS, _LEAST_GAIN = 10, 100, 1e-3
#: How far around, in sizes of the posterior.
_AROUND = (0.01, 0.1, 0.3)


def highest(
    log_prob: Callable[[Tensor], Tensor], log_q: Callable[[Tensor], Tensor], draws: Tensor, whitening: Whitening
) -> Tensor:
    """The theta `(d,)` of highest density, float32, found from the best of `draws` by L-BFGS (Byrd et al. 1995).

    It moves in whitened parameters, hence never outside the prior.

    Arguments:
        log_prob: `log q(theta | x, beta)` of theta `(n, d)`, `(n,)`.
        log_q: `log q(u | x, beta)` of u `(n, d)`, `(n,)`, with gradients, double precision.
        draws: Where to begin, `(n, d)`.
        whitening: The bijection between them.
    """
    # Takes a third of a second that draws need not wait for.
    from scipy.optimize import minimize

    def density(u: Tensor) -> Tensor:
        inside = whitening.in_support(whitening.to_theta(u).clamp(*whitening.ends))
        return torch.where(inside, log_q(u) + _volume(u, whitening), -torch.inf).nan_to_num(-torch.inf)

    u = whitening.to_u(draws)
    low, high = u.new_full((2, whitening.dim), torch.inf)
    low = -low
    boxed = isinstance(whitening, MarginalWhitening) and bool(whitening.curved)
    if boxed:  # of other priors the ends are no box in u, or too far to matter
        low, high = whitening.to_u(torch.stack(whitening.ends))
    best = log_prob(draws).argmax()
    # The climb sees a posterior of size one and, where bounds need not stay a box, without correlations.
    center, size = u[best].clamp(low, high), u.std(dim=0).nan_to_num(1.0).clamp(min=1e-6)
    shape = torch.diag(size)
    if not boxed and len(u) > 2 * whitening.dim:
        shape = torch.linalg.cholesky(torch.atleast_2d(u.mT.cov()) + torch.diag(1e-4 * size.square()))

    def cost(v: np.ndarray) -> tuple[float, np.ndarray]:
        here = center + shape @ torch.from_numpy(v)
        with torch.enable_grad():
            point = here[None].requires_grad_()
            value = log_q(point).sum()
            slope = torch.autograd.grad(value, point)[0][0]
        steps = _STEP * shape.mT
        around = _volume(torch.cat([here[None], here + steps, here - steps]), whitening)
        volume, ahead, behind = around.split([1, whitening.dim, whitening.dim])
        gradient = slope @ shape + (ahead - behind) / (2 * _STEP)
        return -float(value + volume), -gradient.numpy()

    reached = float(density(center[None]))
    for _ in range(_CLIMBS):
        box = torch.stack([(low - center) / size, (high - center) / size], dim=1).numpy()
        options = {"maxiter": _ITERATIONS}
        climbed = minimize(cost, np.zeros(whitening.dim), jac=True, method="L-BFGS-B", bounds=box, options=options)
        top = (center + shape @ torch.from_numpy(climbed.x)).clamp(low, high)
        around = torch.cat([top[None], *(top + share * (u - u.mean(dim=0)) for share in _AROUND)]).clamp(low, high)
        found = density(around)
        gain, row = float(found.max()) - reached, int(found.argmax())
        if gain > 0:
            center, reached = around[row], reached + gain
        # The top itself may be outside a prior that is no box, which the climb does not see.
        converged = climbed.nit < _ITERATIONS and not found[row] > found[0] + _LEAST_GAIN
        if converged or gain < _LEAST_GAIN:
            break
    # Nor does it see rounding.
    both = torch.stack([draws[best], whitening.to_single(center)])
    return both[log_prob(both).argmax()]


def _volume(u: Tensor, whitening: Whitening) -> Tensor:
    """`log |du/dtheta|` at u `(n, d)`, `(n,)`: beyond the ends of single precision that of the ends."""
    return whitening.log_abs_det(whitening.to_theta(u).clamp(*whitening.ends))
