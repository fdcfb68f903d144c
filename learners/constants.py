"""Numbers that a saved network relies on: another value would make it another network. Without torch."""

from __future__ import annotations

__all__ = [
    "BOUND",
    "FIRST_SCORING_STEPS",
    "GATE",
    "KNEE",
    "LOG_DEGREES",
    "LOG_SCALES",
    "LOG_SLOPE",
    "MAX_LOG_SCALE",
    "MIN_POSITIVE",
    "OLD_MIN_POSITIVE",
    "TINY",
]

import math
import sys

#: Scaled data beyond grow like a logarithm.
KNEE = 5.0
#: What stands for zero before a logarithm: the least number of full precision; in saves that do not say, another.
MIN_POSITIVE, OLD_MIN_POSITIVE = sys.float_info.min, 1e-30
#: Least distance of a quantile from 0 and 1.
TINY = 1e-15
#: Everything the network learned is multiplied by `1 - exp(-GATE beta / beta_low)`.
GATE = 3.0
#: Largest logarithm of a regression's scale, and of its inverse.
MAX_LOG_SCALE = 12.0
#: B: splines are the identity outside `[-B, B]`.
BOUND = 5.0
#: Logarithm of the largest slope of a bin, and of the inverse of the smallest.
LOG_SLOPE = -math.log(1e-3)
#: Between these lie the logarithms of an emulator's scales: a number that is deterministic must not rule alone.
LOG_SCALES = (-7.0, 5.0)
#: Between these lie the logarithms of an emulator's degrees of freedom.
LOG_DEGREES = (0.7, 6.0)
#: Steps from the first guess of where a posterior lies, in saves that do not say.
FIRST_SCORING_STEPS = 3
