"""What may be asked of a posterior, and what is said where it may not. Without torch."""

from __future__ import annotations

__all__ = ["check_beta", "check_count", "check_x", "noise", "p_text", "pieces", "row_column", "unlike"]

import operator
from collections.abc import Sequence

import numpy as np

from simulators.errors import ConfigError, ObservationError, TemperatureError

#: Below this p-value an observation is called far from everything simulated.
_FAR = 0.005
#: Draws made at once: what stays in the processor's cache.
_PIECE = 8192


def check_beta(beta: float, beta_range: tuple[float, float]) -> float:
    """`beta`, if the network was trained for it.

    Raises:
        TemperatureError: It was not.
    """
    low, high = beta_range
    if not low * (1 - 1e-6) <= float(beta) <= high * (1 + 1e-6):
        raise TemperatureError(
            f"beta = {float(beta):g} is outside the trained range [{low:g}, {high:g}]; choose one inside, "
            "or train with another temperature range"
        )
    return float(beta)


def check_count(name: str, count: int, least: int = 1) -> None:
    """Raises `ConfigError` if fewer than `least` of something are asked for."""
    if count < least:
        raise ConfigError(f"expected {name} of at least {least}, got {count}")


def check_x(shape: Sequence[int], infinite: int, dim_x: int) -> None:
    """Raises `ObservationError` if x of that shape, with so many values that are not finite, is no observation."""
    if not shape or shape[-1] != dim_x:
        raise ObservationError(
            f"expected an observation of {dim_x} numbers (as the simulator returns), got shape {tuple(shape)}"
        )
    if infinite:
        raise ObservationError(f"the observation has {infinite} NaN or infinite values")


def unlike(p_value: np.ndarray) -> str | None:
    """The warning about observations with these p-values, or None."""
    far = int((p_value < _FAR).sum())
    if not far:
        return None
    which = "this x is" if p_value.size == 1 else f"{far} of {p_value.size} x are"
    return (
        f"{which} unlike the simulated data ({p_text(float(p_value.min()))}): the simulator may be unable to "
        "produce it, and the network was not trained there; consider a lower beta"
    )


def p_text(p_value: float) -> str:
    """`p = ...` of `Familiarity.p_value`, whose thousand quantiles cannot tell smaller ones from zero."""
    return f"p = {p_value:.2g}" if p_value >= 1e-3 else "p < 0.001"


def pieces(count: int, rows: int) -> list[int]:
    """How many of `count` draws for each of `rows` observations are made at once."""
    piece = max(1, _PIECE // max(1, rows))
    return [min(piece, count - start) for start in range(0, count, piece)] or [0]


def noise(seed: int | None) -> np.random.Generator:
    """What a seed's draws are made of, with torch or without."""
    return np.random.default_rng(None if seed is None else operator.index(seed) % 2**64)


def row_column(names: Sequence[str]) -> str:
    """Name of the column that says of which x a draw is: `row`, with `_` behind it where a parameter is called that."""
    column = "row"
    while column in names:
        column += "_"
    return column
