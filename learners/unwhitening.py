"""From whitened parameters back to theta, as a save describes it: `whitening.py` in NumPy. Without torch."""

from __future__ import annotations

__all__ = ["Unwhitening", "unwhitening_from_dict"]

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from .constants import TINY
from .single import single_ends

#: `u` `(*, d)` -> theta `(*, d)`, single precision, never outside the prior's bounds for rounding.
Unwhitening = Callable[[np.ndarray], np.ndarray]
Column = Callable[[np.ndarray], np.ndarray]


def unwhitening_from_dict(spec: dict[str, Any]) -> Unwhitening | None:
    """The map that `Whitening.as_dict` describes; None for marginals other than (log-)normal and uniform ones."""
    if spec["kind"] != "marginal":
        return _affine(spec)
    columns = [_column(marginal) for marginal in spec["marginals"]]
    known = [column for column in columns if column is not None]
    if len(known) < len(columns):
        return None
    least, largest = np.array([_ends(marginal) for marginal in spec["marginals"]]).T

    def to_theta(u: np.ndarray) -> np.ndarray:
        u = u.astype(np.float64)
        return _single(np.stack([column(u[..., i]) for i, column in enumerate(known)], axis=-1), least, largest)

    return to_theta


def _single(theta: np.ndarray, least: np.ndarray, largest: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # which is infinite, and then the largest number
        return np.clip(theta.astype(np.float32), least.astype(np.float32), largest.astype(np.float32))


def _ends(spec: Mapping[str, Any]) -> tuple[float, float]:
    low, high = float(spec.get("low", -math.inf)), float(spec.get("high", math.inf))
    positive = spec["distribution"] == "LogNormal"
    return single_ends(max(low, 0.0) if positive else low, high, lambda t: low <= t <= high and (t > 0 or not positive))


def _column(spec: Mapping[str, Any]) -> Column | None:
    name, low, high = spec["distribution"], float(spec.get("low", -math.inf)), float(spec.get("high", math.inf))
    if name == "Uniform":
        return lambda u: low + (high - low) * _quantile(u)
    if name not in ("Normal", "LogNormal"):
        return None
    loc, scale, logarithmic = float(spec["loc"]), float(spec["scale"]), name == "LogNormal"

    def value(u: np.ndarray) -> np.ndarray:
        plain = loc + scale * u
        return np.exp(plain) if logarithmic else plain

    if math.isinf(low) and math.isinf(high):
        return value

    def level(bound: float) -> float:
        if logarithmic:
            bound = math.log(bound) if bound > 0 else -math.inf
        return 0.5 * math.erfc((loc - bound) / (scale * math.sqrt(2)))

    below, above = level(low), level(high)

    def truncated(u: np.ndarray) -> np.ndarray:
        from scipy.special import ndtri

        return np.clip(value(ndtri(below + (above - below) * _quantile(u))), low, high)

    return truncated


def _quantile(u: np.ndarray) -> np.ndarray:
    # A sixth of a second that normal priors need not wait for.
    from scipy.special import ndtr

    return np.clip(ndtr(u), TINY, 1 - TINY)


def _affine(spec: dict[str, Any]) -> Unwhitening:
    mean, factor = np.array(spec["mean"], dtype=np.float64), np.array(spec["scale"], dtype=np.float64)
    bounded = [[bound is not None for bound in spec[key]] for key in ("lower", "upper")]
    below, above = np.array(bounded)
    low, high = (np.array([bound or 0.0 for bound in spec[key]]) for key in ("lower", "upper"))
    least, largest = np.array([_open_ends(*bounds) for bounds in zip(spec["lower"], spec["upper"], strict=True)]).T

    def to_theta(u: np.ndarray) -> np.ndarray:
        free = u.astype(np.float64) @ factor.T + mean
        with np.errstate(over="ignore"):  # of what the masks leave out
            one_sided = np.where(below, low + np.exp(free), np.where(above, high - np.exp(-free), free))
            theta = np.where(below & above, low + (high - low) / (1 + np.exp(-free)), one_sided)
        return _single(theta, least, largest)

    return to_theta


def _open_ends(lower: float | None, upper: float | None) -> tuple[float, float]:
    low, high = -math.inf if lower is None else lower, math.inf if upper is None else upper
    return single_ends(low, high, lambda t: low < t < high)
