r"""Where a posterior lies: a first guess, improved by Fisher scoring on an emulator of the data. With or without torch.

To the emulator every number of `z` has Student's t distribution with middle `m_j(u)`, logarithm of the scale `s_j(u)`
and `nu_j` degrees of freedom; whitened parameters are normal. With `r_j = (z_j - m_j) e^{-s_j}` and
`w_j = (nu_j + 1) / (nu_j + r_j^2)`, the posterior at beta = 1 has the gradient and the expected information (Lange,
Little & Taylor 1989)

.. math:: g = \sum_j \big[w_j r_j e^{-s_j} \nabla m_j + (w_j r_j^2 - 1) \nabla s_j\big] - u, \qquad
    F = I + \sum_j \Big[\tfrac{\nu_j + 1}{\nu_j + 3}\, e^{-2 s_j} \nabla m_j \nabla m_j^T
    + \tfrac{2 \nu_j}{\nu_j + 3} \nabla s_j \nabla s_j^T\Big],

and a step is `(F + lambda diag F)^{-1} g`, taken if it climbs (Levenberg 1944; Marquardt 1963).
"""

from __future__ import annotations

__all__ = ["ROWS", "Layers", "hints", "scored"]

from collections.abc import Sequence
from typing import Any

from .constants import LOG_SCALES
from .laplace import framed

#: Weights `(out, in)` and biases `(out,)` of a network with SiLU between its layers.
Layers = Sequence[tuple[Any, Any]]

#: Rows to be asked for at once: the derivatives of a layer are `(d, rows, units)`.
ROWS = 2048
#: Parameters lie within this of zero, and a step is no longer than the other.
_FURTHEST, _LONGEST = 5.0, 2.0
#: Of the damping: at first, and its bounds.
_DAMPING, _LEAST, _MOST = 1e-2, 1e-4, 1e4
#: Least variance, and what rounding leaves uncertain of a cost.
_SMALLEST, _ROUNDING = 1e-12, 1e-6


def hints(xp: Any, z: Any, guess: Layers, middle: Layers, log_scale: Layers, degrees: Any, steps: int) -> Any:
    """What is told of each `z` `(n, k)`: mode, logarithms of the standard deviations, and frame, `(n, 3 d + d^2)`.

    Arguments:
        xp: `numpy` or `torch`, whichever the other arguments are of.
        z: Scaled data.
        guess: Network of the expected parameters, given `z`.
        middle, log_scale: The emulator: networks of middles and logarithms of scales, given parameters.
        degrees: Degrees of freedom, `(k,)`.
        steps: How many steps of scoring are taken.
    """
    u = xp.clip(_forward(xp, guess, z), -_FURTHEST, _FURTHEST)
    eye = xp.eye(u.shape[1], dtype=u.dtype, device=u.device)
    emulator = middle, log_scale, degrees, eye
    damping = 0 * u[:, 0] + _DAMPING
    cost, gradient, information = scored(xp, u, z, *emulator)
    for _ in range(steps):
        damped = information * (1 + damping[:, None, None] * eye)
        step = xp.linalg.solve(damped, gradient[..., None])[..., 0]
        length = (step * step).sum(-1)[:, None] ** 0.5
        tried = xp.clip(u + step * (_LONGEST / xp.clip(length, _LONGEST, None)), -_FURTHEST, _FURTHEST)
        found = scored(xp, tried, z, *emulator)
        # What is no worse but for rounding is taken: at the end steps count that the cost is too coarse to tell.
        better = found[0] < cost + _ROUNDING * abs(cost)
        u = xp.where(better[:, None], tried, u)
        cost = xp.where(better, found[0], cost)
        gradient = xp.where(better[:, None], found[1], gradient)
        information = xp.where(better[:, None, None], found[2], information)
        damping = xp.clip(xp.where(better, damping / 10, damping * 10), _LEAST, _MOST)
    frames, variances = framed(xp, information, eye)
    told = xp.concatenate([u, xp.log(xp.clip(variances, _SMALLEST, None)) / 2, frames], -1)
    return xp.nan_to_num(told, nan=0.0)


def _forward(xp: Any, layers: Layers, value: Any) -> Any:
    """What a network says of `value` `(n, *)`."""
    for weight, bias in layers[:-1]:
        value = value @ weight.T + bias
        value = value / (1 + xp.exp(-value))
    weight, bias = layers[-1]
    return value @ weight.T + bias


def scored(xp: Any, u: Any, z: Any, middle: Layers, log_scale: Layers, degrees: Any, eye: Any) -> tuple[Any, Any, Any]:
    """Minus the logarithm of the posterior `(n,)`, its gradient `(n, d)` and its information `(n, d, d)`."""
    m, to_m = _with_slopes(xp, middle, u, eye)
    s, to_s = _with_slopes(xp, log_scale, u, eye)
    to_s = to_s * ((s > LOG_SCALES[0]) & (s < LOG_SCALES[1]))
    s = xp.clip(s, *LOG_SCALES)
    inverse = xp.exp(-s)
    r = (z - m) * inverse
    square = r * r
    w = (degrees + 1) / (degrees + square)
    to_m = to_m * inverse
    cost = ((degrees + 1) / 2 * xp.log1p(square / degrees) + s).sum(-1) + (u * u).sum(-1) / 2
    gradient = xp.swapaxes((to_m * (w * r) + to_s * (w * square - 1)).sum(-1), 0, 1) - u
    to_m, to_s = xp.swapaxes(to_m, 0, 1), xp.swapaxes(to_s, 0, 1)
    known = (to_m * ((degrees + 1) / (degrees + 3))) @ to_m.mT + (to_s * (2 * degrees / (degrees + 3))) @ to_s.mT
    return cost, gradient, known + eye


def _with_slopes(xp: Any, layers: Layers, u: Any, eye: Any) -> tuple[Any, Any]:
    """What a network says of `u` `(n, d)`, `(n, k)`, and its derivatives, `(d, n, k)`: one product a layer each."""
    value, slopes = u, eye[:, None, :]
    for i, (weight, bias) in enumerate(layers):
        if i:
            gate = 1 / (1 + xp.exp(-value))
            slopes = slopes * (gate * (1 + value * (1 - gate)))
            value = value * gate
        value, slopes = value @ weight.T + bias, slopes @ weight.T
    return value, slopes
