"""Numbers as users hold them: tensors of any kind, arrays of NumPy, frames of pandas, lists."""

from __future__ import annotations

__all__ = ["as_double"]

from typing import Any

import numpy as np
import torch
from torch import Tensor

from simulators.errors import DataError, TemperflowError


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
            value = torch.as_tensor(_writable(value) if hasattr(value, "__array__") else value, device="cpu")
        if not value.is_complex():
            return value.detach().cpu().double()
    except (TypeError, ValueError, RuntimeError) as reason:
        raise error(f"{what}: expected real numbers, got {type(value).__name__} ({reason})") from reason
    raise error(f"{what}: expected real numbers, got complex ones; give real and imaginary parts as columns")


def _writable(value: Any) -> np.ndarray:
    array = np.asarray(value)
    if array.dtype.kind == "O":  # columns of different kinds
        array = array.astype(np.float64)
    return np.require(array, requirements=["C", "W"])
