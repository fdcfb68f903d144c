"""Numbers as users hold them: tensors of any kind, arrays of NumPy, frames of pandas, lists."""

from __future__ import annotations

__all__ = ["as_double", "as_x"]

from typing import Any

import numpy as np
import torch
from torch import Tensor

from simulators.errors import DataError, ObservationError, TemperflowError

from .asking import check_x


def as_double(value: Any, what: str, error: type[TemperflowError] = DataError) -> Tensor:
    """`value` as a tensor in double precision on the CPU, without gradients; not a copy where it is one already.

    Arguments:
        value: Any numbers.
        what: What they are, for the message.
        error: Its class.

    Raises:
        TemperflowError: They are complex, or not numbers.
    """
    try:
        if not isinstance(value, Tensor):
            # By way of NumPy where it can: torch knows no frames, and no strides that go backwards.
            numbers = _writable(value) if hasattr(value, "__array__") else value
            value = torch.as_tensor(numbers, device="cpu")
            if value.is_floating_point():
                # Python's numbers are double; torch reads lists of them in its default precision.
                value = torch.as_tensor(numbers, dtype=torch.float64, device="cpu")
        if not value.is_complex():
            return value.detach().cpu().double()
    except (TypeError, ValueError, RuntimeError) as reason:
        raise error(f"{what}: expected real numbers, got {type(value).__name__} ({reason})") from reason
    raise error(f"{what}: expected real numbers, got complex ones; give real and imaginary parts as columns")


def as_x(value: Any, dim_x: int, one: bool = False) -> Tensor:
    """Observations `(*, k)` of `dim_x` finite numbers, in double precision; of a single one `(k,)`.

    Where k is 1, a number is an observation.

    Raises:
        ObservationError: They are not, or not one.
    """
    x = as_double(value, "the observation", ObservationError)
    if x.ndim == 0 and dim_x == 1:
        x = x.reshape(1)
    check_x(x.shape, int((~x.isfinite()).sum()), dim_x)
    if one and x.numel() != dim_x:
        raise ObservationError(f"expected one observation of shape ({dim_x},), got {tuple(x.shape)}")
    return x.reshape(-1) if one else x


def _writable(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind == "O":  # columns of different kinds
        array = array.astype(np.float64)
    return np.require(array, requirements=["C", "W"])
