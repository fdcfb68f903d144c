r"""The monotonic rational-quadratic spline (Durkan et al. 2019, arXiv 1906.04032), laid out for speed.

On bin k with ends `(x_k, y_k)`, width `w`, height `h`, slope `s = h / w` and derivatives `d_k, d_{k+1}` at its ends,

.. math:: f(x) = y_k + h\,\frac{s \xi^2 + d_k \xi (1 - \xi)}{s + (d_k + d_{k+1} - 2 s)\,\xi (1 - \xi)},
    \quad \xi = \frac{x - x_k}{w},

and the identity outside `[-B, B]`. The same function as zuko's, with the bins on the *first* axis: all work is then on
long contiguous rows, which makes a training step about twice as fast on a CPU. Parameters of zero give the identity.

Between the bulk of the data and `B` a spline may do anything: its tails are what the few outermost data made of them.
`TailedSpline` applies a narrow spline after an affine map of its own, so that beyond three of *its* units it is affine,
and the density falls like a Gaussian whose location and scale were learned from the bulk.
"""

from __future__ import annotations

__all__ = ["RationalQuadraticSpline", "TailedSpline"]

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Transform, constraints

from .constants import BOUND
from .spline_kernel import SplineKernel, spline_table

_NARROW = 3.0
_MAX_LOG_SCALE = 8.0


class RationalQuadraticSpline(Transform):
    """An elementwise spline; acts on `(*)`.

    Arguments:
        phi: Unconstrained widths, heights and inner derivatives, `(3 K - 1, *)` for K bins.
        bound: B, where the spline ends.
    """

    domain = constraints.real
    codomain = constraints.real
    bijective = True
    sign = +1

    def __init__(self, phi: Tensor, bound: float = BOUND) -> None:
        super().__init__()
        self.phi, self.bound = phi, bound

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`f(x)` and `log f'(x)`."""
        shape = torch.Size(np.broadcast_shapes(self.phi.shape[1:], x.shape))
        y, log_slope = SplineKernel.apply(_expanded(self.phi, shape), x.expand(shape), self.bound)  # type: ignore[no-untyped-call]
        return y, log_slope

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call_and_ladj(x)[1]

    def _inverse(self, y: Tensor) -> Tensor:
        ends, sizes, slopes = spline_table(
            _expanded(self.phi, torch.Size(np.broadcast_shapes(self.phi.shape[1:], y.shape))), self.bound
        )
        k = (y >= ends[1, 1:]).sum(dim=0)
        x_k, y_k = (end.gather(0, k[None])[0] for end in ends)
        w, h = (size.gather(0, k[None])[0] for size in sizes)
        d0, d1 = slopes.gather(0, torch.stack([k, k + 1]))
        s = h / w
        t = (y - y_k).clamp(min=0.0).minimum(h)
        curvature = d0 + d1 - 2 * s
        a = h * (s - d0) + t * curvature
        b = h * d0 - t * curvature
        c = -s * t
        root = (b * b - 4 * a * c).clamp(min=0.0).sqrt()
        xi = (2 * c / (-b - root)).clamp(0.0, 1.0)
        return torch.where(y.abs() < self.bound, x_k + xi * w, y)


class TailedSpline(RationalQuadraticSpline):
    """`f((x - m) exp(-s))` with a spline `f` on `[-3, 3]`; see the module.

    Arguments:
        phi: `m`, `s` and the parameters of the spline, `(3 K + 1, *)` for K bins.
    """

    def __init__(self, phi: Tensor) -> None:
        super().__init__(phi[2:], _NARROW)
        self.shift, self.log_scale = phi[0], phi[1].clamp(-_MAX_LOG_SCALE, _MAX_LOG_SCALE)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, log_slope = super().call_and_ladj((x - self.shift) * torch.exp(-self.log_scale))
        return y, log_slope - self.log_scale

    def _inverse(self, y: Tensor) -> Tensor:
        return super()._inverse(y) * torch.exp(self.log_scale) + self.shift


def _expanded(phi: Tensor, shape: torch.Size) -> Tensor:
    """Parameters `(m, *)` for values of a shape that `(*)` can be broadcast to."""
    missing = [1] * (len(shape) + 1 - phi.ndim)
    return phi.reshape(len(phi), *missing, *phi.shape[1:]).expand(-1, *shape)
