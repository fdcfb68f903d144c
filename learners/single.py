"""Single precision and the bounds of a prior: rounding must not step onto or over one. Without torch."""

from __future__ import annotations

__all__ = ["single_ends"]

from collections.abc import Callable

import numpy as np

_LARGEST = float(np.finfo(np.float32).max)


def single_ends(low: float, high: float, inside: Callable[[float], bool]) -> tuple[float, float]:
    """The least and the largest number of single precision that is `inside` an interval.

    Arguments:
        low, high: Its bounds, which may be infinite.
        inside: Whether a number within rounding of a bound belongs to it, as the bound itself may or may not.
    """
    found = []
    for bound, inward in ((low, np.inf), (high, -np.inf)):
        end = np.float32(min(max(bound, -_LARGEST), _LARGEST))
        found.append(float(end if inside(float(end)) else np.nextafter(end, np.float32(inward))))
    return found[0], found[1]
