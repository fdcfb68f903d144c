r"""The rational-quadratic spline, the logarithm of its slope, and the gradients of both, written out.

Left to autograd, a spline is a hundred small operations with as many nodes in its graph. Here forward and backward are
one function each: a fifth less time. With the notation of `spline.py`,
`p = xi (1 - xi)`, `N = s xi^2 + d_0 p`, `D = s + (d_0 + d_1 - 2 s) p` and `M = d_1 xi^2 + 2 s p + d_0 (1 - xi)^2`,

.. math:: y = y_k + h N / D, \qquad \log f' = 2 \log s + \log M - 2 \log D,

and for each `q` of `xi, s, d_0, d_1`

.. math:: \frac{\partial y}{\partial q} = \frac{h}{D}\Big(N_q - \frac{N}{D} D_q\Big), \qquad
    \frac{\partial \log f'}{\partial q} = \frac{M_q}{M} - \frac{2 D_q}{D} + \frac{2}{s}\,[q = s].

Widths and heights are normalized, `w_j = 2 B e_j / \sum_i e_i`; a gradient `G_j` with respect to them is
`w_j (G_j - \sum_i G_i w_i / 2B)` with respect to `log e_j`, and the sum is known, for `G` has one value left of the
bin, one in it, and zero right of it.
"""

from __future__ import annotations

__all__ = ["SplineKernel", "spline_table"]

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .constants import LOG_SLOPE


def spline_table(phi: Tensor, bound: float) -> tuple[Tensor, Tensor, Tensor]:
    """Ends `(2, K, *)`, sizes `(2, K, *)` and derivatives at all ends `(K + 1, *)` of the bins, of x and of y.

    Arguments:
        phi: Unconstrained widths, heights and inner derivatives, `(3 K - 1, *)`.
        bound: B, where the spline ends.
    """
    bins = (phi.shape[0] + 1) // 3
    # Softly clipped to +-log(1000)/2, hence no overflow and no need of the usual maximum.
    sizes = torch.exp(phi[: 2 * bins] / (1 + (2 / LOG_SLOPE * phi[: 2 * bins]).abs())).unflatten(0, (2, bins))
    sizes = sizes * (2 * bound / sizes.sum(dim=1, keepdim=True))
    inner = torch.exp(phi[2 * bins :] / (1 + (1 / LOG_SLOPE * phi[2 * bins :]).abs()))
    left = torch.full_like(sizes[:, :1], -bound)
    ends = torch.cat([left, sizes[:, :-1].cumsum(dim=1) - bound], dim=1)
    one = torch.ones_like(inner[:1])
    return ends, sizes, torch.cat([one, inner, one])


class SplineKernel(torch.autograd.Function):
    """`apply(phi, x, bound)` -> `(y, log f'(x))` for `phi` `(3 K - 1, *)` and `x` `(*)` of the same shape `(*)`."""

    @staticmethod
    def forward(ctx: Any, phi: Tensor, x: Tensor, bound: float) -> tuple[Tensor, Tensor]:
        shape, bins = x.shape, (phi.shape[0] + 1) // 3
        phi, x = phi.reshape(phi.shape[0], -1), x.reshape(-1)
        ends, sizes, slopes = spline_table(phi, bound)
        k = (x >= ends[0, 1:]).sum(dim=0)
        (x_k, y_k), (w, h) = (
            ends.gather(1, k.expand(2, 1, -1)).squeeze(1),
            sizes.gather(1, k.expand(2, 1, -1)).squeeze(1),
        )
        d0, d1 = slopes.gather(0, torch.stack([k, k + 1]))
        inside = x.abs() < bound
        s = h / w
        xi = ((x - x_k) / w).clamp(0.0, 1.0)
        p = xi * (1 - xi)
        bend = d0 + d1 - 2 * s
        below = s + bend * p
        above = s * xi.square() + d0 * p
        slope = d1 * xi.square() + 2 * s * p + d0 * (1 - xi).square()
        y = torch.where(inside, y_k + h * above / below, x)
        log_slope = torch.where(inside, 2 * (s / below).log() + slope.log(), 0.0)
        ctx.save_for_backward(phi, sizes, slopes, k, xi, s, torch.stack([w, h, x_k, y_k]), inside)
        ctx.bound, ctx.bins, ctx.shape = bound, bins, shape
        return y.reshape(shape), log_slope.reshape(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_y: Tensor, grad_log_slope: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        phi, sizes, slopes, k, xi, s, local, inside = ctx.saved_tensors
        w, h = local[:2]
        bound, bins = ctx.bound, ctx.bins
        outer = grad_y.reshape(-1)
        a, b = torch.where(inside, outer, 0.0), torch.where(inside, grad_log_slope.reshape(-1), 0.0)
        d0, d1 = slopes.gather(0, torch.stack([k, k + 1]))
        rest, square = 1 - xi, xi.square()
        p, turn = xi * rest, 1 - 2 * xi
        bend = d0 + d1 - 2 * s
        below = s + bend * p
        ratio = (s * square + d0 * p) / below
        slope = d1 * square + 2 * s * p + d0 * rest.square()
        # Both outputs depend on N, D and M only (and on y_k, h and s themselves).
        to_n = a * h / below
        to_d = -to_n * ratio - 2 * b / below
        to_m = b / slope
        to_xi = to_n * (2 * s * xi + d0 * turn) + to_d * bend * turn + 2 * to_m * (d1 * xi + s * turn - d0 * rest)
        to_s = to_n * square + to_d * (1 - 2 * p) + 2 * to_m * p + 2 * b / s
        to_d0 = (to_n + to_d) * p + to_m * rest.square()
        to_d1 = to_d * p + to_m * square
        to_x = to_xi / w
        grad_x = torch.where(inside, to_x, outer) if ctx.needs_input_grad[1] else None
        grad_phi = None
        if ctx.needs_input_grad[0]:
            grad_phi = torch.empty_like(phi)
            index = torch.arange(bins, device=phi.device)[:, None]
            before, here = index < k, index == k
            # Gradients with respect to sizes, of x and of y: left of the bin, in it, and on average.
            left = torch.stack([-to_x, a])
            own = torch.stack([-to_x * xi - to_s * s / w, a * ratio + to_s / w])
            mean = torch.addcmul(left * (local[2:] + bound), own, local[:2]) / (2 * bound)
            part = torch.where(before, (left - mean)[:, None], torch.where(here, (own - mean)[:, None], -mean[:, None]))
            torch.mul(part, sizes, out=grad_phi[: 2 * bins].unflatten(0, (2, bins)))
            inner = torch.where(here[1:], to_d0, torch.where(here[:-1], to_d1, 0.0))
            torch.mul(inner, slopes[1:-1], out=grad_phi[2 * bins :])
            # Of the soft clipping.
            softness = phi.abs().mul_(1 / LOG_SLOPE)
            softness[: 2 * bins].mul_(2)
            grad_phi.div_(softness.add_(1).square_())
            grad_phi = grad_phi.reshape(-1, *ctx.shape)
        return grad_phi, None if grad_x is None else grad_x.reshape(ctx.shape), None
