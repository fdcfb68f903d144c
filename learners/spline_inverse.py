"""The inverse of the rational-quadratic spline (`spline.py`) in NumPy. Without torch."""

from __future__ import annotations

__all__ = ["invert_spline"]

from functools import lru_cache

import numpy as np

from .constants import BOUND, LOG_SLOPE


def invert_spline(phi: np.ndarray, y: np.ndarray, bound: float = BOUND) -> np.ndarray:
    """`RationalQuadraticSpline(phi, bound).inv(y)` in NumPy, for `phi` `(3 K - 1, n)` and `y` `(n,)`.

    A draw from an autoregressive flow inverts one spline after the other on a few hundred numbers. What costs there
    are the calls, and NumPy's cost a third of torch's.
    """
    bins, n = (phi.shape[0] + 1) // 3, len(y)
    softness, below = _constants(bins, phi.dtype.str)
    positive = np.abs(phi)
    positive *= softness
    positive += 1
    np.divide(phi, positive, out=positive)
    np.exp(positive, out=positive)
    sizes = positive[: 2 * bins].reshape(2, bins, n)
    # Left ends and bottoms of all bins, and the whole width and height, before they are scaled to the interval.
    ends = below @ sizes
    scale_x, scale_y = 2 * bound / ends[:, -1]
    target = (y + bound) / scale_y
    # Bin of every value, as a position in the flattened tables.
    k = (target >= ends[1, 1:-1]).sum(axis=0) * n + np.arange(n)
    x_k, y_k = ends.reshape(2, -1).take(k, axis=1)
    w, h = sizes.reshape(2, -1).take(k, axis=1)
    slopes = np.ones((bins + 1, n), dtype=phi.dtype)
    slopes[1:-1] = positive[2 * bins :]
    flat = slopes.reshape(-1)
    d0, d1 = flat.take(k), flat.take(k + n)
    s = h * scale_y / (w * scale_x)
    t = np.minimum(np.maximum(target - y_k, 0.0), h)
    bend = t * (d0 + d1 - 2 * s)
    b, c = h * d0 - bend, s * t
    a = h * s - b
    root = np.sqrt(np.maximum(b * b + 4 * a * c, 0.0))
    return np.where(np.abs(y) < bound, (x_k + 2 * c / (b + root) * w) * scale_x - bound, y)


@lru_cache
def _constants(bins: int, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    """How softly each row of the parameters is clipped `(3 K - 1, 1)`, and the matrix that sums bins `(K + 1, K)`."""
    softness = np.full((3 * bins - 1, 1), 1 / LOG_SLOPE)
    softness[: 2 * bins] *= 2
    return softness.astype(dtype), np.tri(bins + 1, bins, -1).astype(dtype)
