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

import math

import torch
from torch import Tensor
from torch.distributions import Transform, constraints

_BOUND = 5.0
_NARROW = 3.0
_MAX_LOG_SCALE = 8.0
_LOG_SLOPE = math.log(1e-3)


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

    def __init__(self, phi: Tensor, bound: float = _BOUND) -> None:
        super().__init__()
        self.bound = bound
        bins = (phi.shape[0] + 1) // 3
        widths, heights, slopes = phi.split([bins, bins, bins - 1])
        self.x, self.w = _knots(widths, bound)
        self.y, self.h = _knots(heights, bound)
        slopes = torch.exp(slopes / (1 + (slopes / _LOG_SLOPE).abs()))
        one = torch.ones_like(slopes[:1])
        self.d = torch.cat([one, slopes, one])

    def _call(self, x: Tensor) -> Tensor:
        return self.call_and_ladj(x)[0]

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`f(x)` and `log f'(x)`."""
        x_k, w, y_k, h, d0, d1 = self._bin(self.x, x)
        s = h / w
        xi = ((x - x_k) / w).clamp(0.0, 1.0)
        product = xi * (1 - xi)
        denominator = s + (d0 + d1 - 2 * s) * product
        inside = x.abs() < self.bound
        y = torch.where(inside, y_k + h * (s * xi * xi + d0 * product) / denominator, x)
        slope = s * s * (d1 * xi * xi + 2 * s * product + d0 * (1 - xi) ** 2) / (denominator * denominator)
        return y, torch.where(inside, slope, torch.ones_like(slope)).log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.call_and_ladj(x)[1]

    def _inverse(self, y: Tensor) -> Tensor:
        x_k, w, y_k, h, d0, d1 = self._bin(self.y, y)
        s = h / w
        t = (y - y_k).clamp(min=0.0).minimum(h)
        curvature = d0 + d1 - 2 * s
        a = h * (s - d0) + t * curvature
        b = h * d0 - t * curvature
        c = -s * t
        root = (b * b - 4 * a * c).clamp(min=0.0).sqrt()
        xi = (2 * c / (-b - root)).clamp(0.0, 1.0)
        return torch.where(y.abs() < self.bound, x_k + xi * w, y)

    def _bin(self, knots: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """Left end, width, bottom, height and both derivatives of the bin of every value."""
        shape = torch.broadcast_shapes(knots.shape[1:], value.shape)

        def wide(table: Tensor) -> Tensor:
            missing = [1] * (len(shape) + 1 - table.ndim)
            return table.reshape(len(table), *missing, *table.shape[1:]).expand(-1, *shape)

        def at(table: Tensor, index: Tensor) -> Tensor:
            return wide(table).gather(0, index).squeeze(0)

        k = (value >= wide(knots)[1:]).sum(dim=0, keepdim=True)
        tables = self.x, self.w, self.y, self.h, self.d
        return (*(at(table, k) for table in tables), at(self.d, k + 1))


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


def _knots(raw: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Left ends `(K, *)` and sizes `(K, *)` of the bins on `[-B, B]`."""
    # Softly clipped to +-log(1000)/2, hence no overflow and no need of the usual maximum.
    sizes = torch.exp(raw / (1 + (2 * raw / _LOG_SLOPE).abs()))
    sizes = sizes * (2 * bound / sizes.sum(dim=0, keepdim=True))
    ends = torch.cumsum(sizes[:-1], dim=0) - bound
    return torch.cat([torch.full_like(ends[:1], -bound), ends]), sizes
